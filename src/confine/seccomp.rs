//! seccomp: system calls that are refused, to us and to all that we start.

use std::collections::BTreeMap;

use libc::{self as nr, c_long};
use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::sys;

/// What neither Chiton nor a sane check or dry run does: looking into other processes, changing the kernel, its mounts,
/// keys and clock, and the widest doors into it. They are answered with EPERM.
const DENIED: [c_long; 47] = [
    nr::SYS_ptrace,
    nr::SYS_process_vm_readv,
    nr::SYS_process_vm_writev,
    nr::SYS_process_madvise,
    nr::SYS_pidfd_getfd,
    nr::SYS_kcmp,
    nr::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    nr::SYS_init_module,
    nr::SYS_finit_module,
    nr::SYS_delete_module,
    nr::SYS_bpf,
    nr::SYS_perf_event_open,
    nr::SYS_userfaultfd,
    nr::SYS_io_uring_setup,
    nr::SYS_io_uring_enter,
    nr::SYS_io_uring_register,
    nr::SYS_mount,
    nr::SYS_umount2,
    nr::SYS_pivot_root,
    nr::SYS_fsopen,
    nr::SYS_fsmount,
    nr::SYS_fsconfig,
    nr::SYS_fspick,
    nr::SYS_open_tree,
    nr::SYS_move_mount,
    nr::SYS_mount_setattr,
    nr::SYS_unshare,
    nr::SYS_setns,
    nr::SYS_open_by_handle_at,
    nr::SYS_quotactl,
    nr::SYS_swapon,
    nr::SYS_swapoff,
    nr::SYS_acct,
    nr::SYS_add_key,
    nr::SYS_request_key,
    nr::SYS_keyctl,
    nr::SYS_reboot,
    nr::SYS_sethostname,
    nr::SYS_setdomainname,
    nr::SYS_settimeofday,
    nr::SYS_clock_settime,
    nr::SYS_clock_adjtime,
    nr::SYS_adjtimex,
    nr::SYS_vhangup,
    nr::SYS_nfsservctl,
    nr::SYS_lookup_dcookie,
];

/// The libc crate has it for some C libraries only.
const KEXEC_FILE_LOAD: c_long = if cfg!(target_arch = "x86_64") { 320 } else { 294 };
/// Added to a number for x32, a second way to the same calls that the check of the architecture does not see.
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: TargetArch = TargetArch::riscv64;

/// From now on they are refused. A program for another architecture is killed at its first system call.
///
/// # Errors
/// Why they are not.
pub(super) fn install() -> Result<(), String> {
    let denied: BTreeMap<i64, _> = numbers().map(|number| (number, Vec::new())).collect();
    let refusal = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
    let filter = SeccompFilter::new(denied, SeccompAction::Allow, refusal, ARCHITECTURE);
    let program =
        filter.and_then(BpfProgram::try_from).map_err(|error| format!("seccomp: {error}"))?;
    sys::filter_system_calls(&program).map_err(|error| match error {
        Errno::NOSYS | Errno::INVAL => "the kernel has no seccomp filters".to_owned(),
        error => format!("seccomp: {error}"),
    })
}

#[cfg(target_arch = "x86_64")]
fn numbers() -> impl Iterator<Item = i64> {
    let ports = [nr::SYS_iopl, nr::SYS_ioperm, nr::SYS_modify_ldt];
    DENIED.into_iter().chain(ports).flat_map(|number| [number, number | X32])
}

#[cfg(not(target_arch = "x86_64"))]
fn numbers() -> impl Iterator<Item = i64> {
    DENIED.into_iter()
}
