//! The few things that the language cannot check: the only module with `unsafe`, each block with its reason.
#![expect(unsafe_code, reason = "the one place for it: each block says why it is sound")]

use core::ffi::{CStr, c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use rustix::process::{DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, setrlimit};
use rustix::thread::CapabilitySet;

/// `landlock_create_ruleset(2)` and the two after it: the same numbers on every architecture that we build for.
const LANDLOCK_CREATE_RULESET: c_long = 444;
const LANDLOCK_ADD_RULE: c_long = 445;
const LANDLOCK_RESTRICT_SELF: c_long = 446;
/// Instead of a ruleset the version is made.
const LANDLOCK_CREATE_RULESET_VERSION: c_long = 1;
const LANDLOCK_RULE_PATH_BENEATH: c_long = 1;
#[cfg(all(
    feature = "seccomp",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
const SECCOMP_SET_MODE_FILTER: c_long = 1;
/// Capabilities are numbers below this, in the kernel's own words.
const MAX_CAPABILITIES: u32 = u64::BITS;
/// Classic signals are 1 to 31; the real-time ones after them are never ignored by convention.
const LAST_CLASSIC_SIGNAL: c_int = 31;
/// `SIG_DFL`.
const DEFAULT_ACTION: usize = 0;
/// Linux's error numbers stay below this; what is above says which step failed ([`Step`]).
const ERRNO_SPACE: i32 = 4096;

unsafe extern "C" {
    /// `signal(2)` of the C library that std links.
    fn signal(number: c_int, action: usize) -> usize;
    /// `getpgid(2)`.
    fn getpgid(pid: c_int) -> c_int;
    /// `syscall(2)`.
    fn syscall(number: c_long, ...) -> c_long;
}

/// What we were started with and have changed: a child has it back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    pub(crate) umask: Mode,
    pub(crate) core: Rlimit,
    pub(crate) files: Rlimit,
}

static INHERITED: OnceLock<Inherited> = OnceLock::new();

/// For every child from now on.
pub(crate) fn give_back_to_children(inherited: Inherited) {
    let _ = INHERITED.set(inherited);
}

/// A capability by its name, with or without `cap_`.
pub(crate) fn capability(name: &str) -> Option<CapabilitySet> {
    let upper = name.to_ascii_uppercase();
    CapabilitySet::from_name(upper.strip_prefix("CAP_").unwrap_or(&upper))
}

/// The result of a system call.
fn result(returned: c_long) -> Result<c_int, Errno> {
    let failed = || Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL);
    c_int::try_from(returned).ok().filter(|value| *value >= 0).ok_or_else(failed)
}

/// Which landlock the kernel has.
pub(crate) fn landlock_abi() -> Result<c_int, Errno> {
    let (none, size) = (core::ptr::null::<u64>(), 0_usize);
    // SAFETY: asked for its version, it takes no attributes: a null pointer and no size.
    result(unsafe { syscall(LANDLOCK_CREATE_RULESET, none, size, LANDLOCK_CREATE_RULESET_VERSION) })
}

/// A ruleset that handles these rights to files.
pub(crate) fn landlock_ruleset(rights: u64) -> Result<OwnedFd, Errno> {
    let (attributes, size) = (&raw const rights, size_of::<u64>());
    // SAFETY: of its attributes the kernel reads as many bytes as it is told: the first field, which this is.
    let made = result(unsafe { syscall(LANDLOCK_CREATE_RULESET, attributes, size, 0 as c_long) })?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// These rights for what lies beneath `at`, or for that file.
pub(crate) fn landlock_allow(
    ruleset: BorrowedFd<'_>,
    at: BorrowedFd<'_>,
    rights: u64,
) -> Result<(), Errno> {
    #[repr(C, packed)]
    struct PathBeneath {
        allowed_access: u64,
        parent_fd: c_int,
    }
    let beneath = PathBeneath { allowed_access: rights, parent_fd: at.as_raw_fd() };
    let (ruleset, attributes) = (c_long::from(ruleset.as_raw_fd()), &raw const beneath);
    // SAFETY: the kernel reads a `landlock_path_beneath_attr`, which that is, and keeps no pointer to it.
    result(unsafe {
        syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, attributes, 0 as c_long)
    })
    .map(drop)
}

/// Puts a ruleset in force, for this thread and all that come out of it.
pub(crate) fn landlock_restrict(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    let ruleset = c_long::from(ruleset.as_raw_fd());
    // SAFETY: numbers go in, a number comes out.
    result(unsafe { syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0 as c_long) }).map(drop)
}

/// The group of a process; 0 for a kernel thread, which rustix's `getpgid` takes for impossible. [`None`]: it is gone.
#[must_use]
pub fn group_of(pid: i32) -> Option<i32> {
    // SAFETY: numbers go in, a number comes out; a bad one is refused with -1.
    let group = unsafe { getpgid(pid) };
    (group >= 0).then_some(group)
}

/// Gives a signal its default action, whatever our parent made of it. An ignored SIGCHLD would lose the exit
/// status of every child; call it for that one before the first child.
pub fn default_action(number: Signal) {
    reset(number.as_raw());
}

fn reset(number: c_int) {
    // SAFETY: SIG_DFL installs no code of ours; a bad number is refused with EINVAL.
    unsafe {
        signal(number, DEFAULT_ACTION);
    }
}

/// Gives the pages of our own code and constants back to the page cache: what ran once, such as a handshake or a parser,
/// is not resident at rest. What runs again is mapped again, at the price of a minor fault.
pub fn give_back_code() {
    /// They stay where they are for as long as the process lives.
    static MAPPINGS: OnceLock<Vec<Mapping>> = OnceLock::new();
    let mappings = MAPPINGS.get().cloned().unwrap_or_else(read_only_mappings);
    for mapping in &mappings {
        // SAFETY: the range is one mapping of a file, never written to (r-x, or the one that begins with the file's
        // head): what is dropped is read again from the file when it is next used, by this very call's own return too.
        let _ = unsafe {
            madvise(
                core::ptr::with_exposed_provenance_mut(mapping.start),
                mapping.length,
                Advice::LinuxDontNeed,
            )
        };
    }
    // None: they could not be read, this time.
    if !mappings.is_empty() {
        let _ = MAPPINGS.set(mappings);
    }
}

/// Addresses.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    start: usize,
    length: usize,
}

/// Those of our own file that are never written to: code and constants.
fn read_only_mappings() -> Vec<Mapping> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let own = std::env::current_exe().unwrap_or_default();
    let own = own.to_str().filter(|own| !own.is_empty());
    let Some(own) = own else { return Vec::new() };
    // Up to the code and no further: constants that lie behind it look like what was relocated, and must stay.
    let ours = maps.lines().filter(|line| line.trim_end().ends_with(own));
    let until = ours.clone().position(|line| line.contains(" r-xp "));
    ours.take(until.map_or(0, |at| at.saturating_add(1)))
        .filter(|line| line.contains(" r-xp ") || line.contains(" r--p 00000000 "))
        .filter_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let (start, end) =
                (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
            Some(Mapping { start, length: end.saturating_sub(start) })
        })
        .collect()
}

/// Puts a filter of system calls in force, for this thread and all that come out of it.
#[cfg(all(
    feature = "seccomp",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
pub(crate) fn filter_system_calls(program: &[seccompiler::sock_filter]) -> Result<(), Errno> {
    #[repr(C)]
    struct Program {
        len: core::ffi::c_ushort,
        filter: *const seccompiler::sock_filter,
    }
    let len = program.len().try_into().map_err(|_| Errno::TOOBIG)?;
    let program = Program { len, filter: program.as_ptr() };
    let (flags, program) = (0 as c_long, &raw const program);
    // SAFETY: the kernel copies a `sock_fprog`, which that is, and the `len` instructions that it points to.
    result(unsafe { syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program) }).map(drop)
}

/// What a child does to itself between fork and exec, after std has set its descriptors, directory and group.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    /// Become this user.
    pub(crate) user: Option<User>,
    /// Decimal text for `/proc/self/oom_score_adj`.
    pub(crate) oom_score_adj: Option<String>,
    /// Capabilities that survive the change of user and the exec.
    pub(crate) ambient: Option<CapabilitySet>,
    /// All that it can ever gain, by whatever it executes.
    pub(crate) bound: Option<CapabilitySet>,
}

/// Numbers of a user.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

/// The step at which a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Pipes, fork, directory or exec: the error number says which.
    Start,
    /// Writing `oom_score_adj`.
    OomScore,
    /// Becoming the user.
    User,
    /// Keeping capabilities.
    Capabilities,
    /// Binding its life to ours.
    DeathSignal,
}

impl Step {
    const ALL: [Self; 5] =
        [Self::Start, Self::OomScore, Self::User, Self::Capabilities, Self::DeathSignal];

    /// std carries one number from the child to us: the step rides above the error number.
    const fn mark(self, error: Errno) -> i32 {
        (self as i32).saturating_mul(ERRNO_SPACE).saturating_add(error.raw_os_error())
    }

    fn unmark(error: io::Error) -> (Self, io::Error) {
        let Some(raw) = error.raw_os_error() else { return (Self::Start, error) };
        let step = raw.checked_div(ERRNO_SPACE).and_then(|step| usize::try_from(step).ok());
        let step = step.and_then(|step| Self::ALL.get(step)).copied().unwrap_or(Self::Start);
        let errno = raw.checked_rem(ERRNO_SPACE).unwrap_or(raw);
        (step, io::Error::from_raw_os_error(errno))
    }
}

/// Starts a command whose child prepares itself by `setup`.
pub(crate) fn spawn(command: &mut Command, setup: Setup) -> Result<Child, (Step, io::Error)> {
    let parent = rustix::process::getpid();
    let prepare = move || {
        prepare(&setup, parent)
            .map_err(|(step, error)| io::Error::from_raw_os_error(step.mark(error)))
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed. `prepare` makes system calls on values
    // that exist already: it takes no lock, allocates and frees nothing, and cannot panic.
    unsafe {
        command.pre_exec(prepare);
    }
    command.spawn().map_err(Step::unmark)
}

/// In the child. No allocation, no locks: see [`spawn`].
fn prepare(setup: &Setup, parent: Pid) -> Result<(), (Step, Errno)> {
    // Handlers go at exec by themselves; what our parent ignored (nohup) would stay ignored in the workload.
    for number in 1..=LAST_CLASSIC_SIGNAL {
        reset(number);
    }
    if let Some(inherited) = INHERITED.get() {
        rustix::process::umask(inherited.umask);
        // Only soft limits were changed: to restore them is anybody's right.
        let _ = setrlimit(Resource::Core, inherited.core);
        let _ = setrlimit(Resource::Nofile, inherited.files);
    }
    if let Some(score) = &setup.oom_score_adj {
        write_score(score).map_err(|error| (Step::OomScore, error))?;
    }
    if let Some(bound) = setup.bound {
        cut_bounds(bound).map_err(|error| (Step::Capabilities, error))?;
    }
    if setup.ambient.is_some() {
        let keep = rustix::thread::set_keep_capabilities(true);
        keep.map_err(|error| (Step::Capabilities, error))?;
    }
    if let Some(user) = &setup.user {
        become_user(user).map_err(|error| (Step::User, error))?;
    }
    // A user has what was given to it, and nothing that we might have inherited.
    let other = setup.user.as_ref().is_some_and(|user| !user.uid.is_root());
    if setup.ambient.is_some() || other {
        let kept = setup.ambient.unwrap_or(CapabilitySet::empty());
        keep_capabilities(kept).map_err(|error| (Step::Capabilities, error))?;
    }
    // After the change of user, which clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| (Step::DeathSignal, error))?;
    // We may have died before that call; then nobody would ever send it.
    if rustix::process::getppid() == Some(parent) {
        Ok(())
    } else {
        Err((Step::DeathSignal, Errno::SRCH))
    }
}

fn write_score(score: &str) -> Result<(), Errno> {
    const PATH: &CStr = c"/proc/self/oom_score_adj";
    // It is root's while we may not be looked into, which the child of a fork is for itself.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let file = rustix::fs::open(PATH, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, score.as_bytes())?;
    Ok(())
}

/// The child has one thread: what changes the thread changes the process.
fn become_user(user: &User) -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&user.groups)?;
    rustix::thread::set_thread_res_gid(user.gid, user.gid, user.gid)?;
    rustix::thread::set_thread_res_uid(user.uid, user.uid, user.uid)
}

/// As far as we may: in a container we may not be allowed to, and the workload shall run all the same.
fn cut_bounds(bound: CapabilitySet) -> Result<(), Errno> {
    for number in 0..MAX_CAPABILITIES {
        let one = CapabilitySet::from_bits_retain(1_u64.wrapping_shl(number));
        if bound.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel knows no more of them; or we lack CAP_SETPCAP.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn keep_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    let mut sets = rustix::thread::capabilities(None)?;
    if !sets.permitted.contains(kept) {
        return Err(Errno::PERM);
    }
    sets.inheritable = kept;
    sets.effective = kept;
    sets.permitted = kept;
    rustix::thread::set_capabilities(None, sets)?;
    for one in kept.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_and_its_error_number_survive_the_pipe() {
        for step in Step::ALL {
            let marked = io::Error::from_raw_os_error(step.mark(Errno::PERM));
            let (got, error) = Step::unmark(marked);
            assert_eq!(got, step);
            assert_eq!(error.raw_os_error(), Some(Errno::PERM.raw_os_error()));
        }
    }

    /// Dropping a page that was written to would lose what was written.
    #[test]
    fn what_is_given_back_holds_code_and_nothing_that_is_ever_written() {
        static WRITTEN: OnceLock<String> = OnceLock::new();
        let text = WRITTEN.get_or_init(|| "kept".to_owned());
        let mappings = read_only_mappings();
        let covered = |address: usize| {
            mappings.iter().any(|it| it.start <= address && address - it.start < it.length)
        };
        assert!(covered(give_back_code as *const () as usize), "{mappings:?}");
        let relocated: &&str = &"a pointer that the loader puts right";
        let on_the_stack = 0_u8;
        for address in [
            (&raw const WRITTEN).addr(),
            text.as_ptr().addr(),
            (&raw const *relocated).addr(),
            (&raw const on_the_stack).addr(),
        ] {
            assert!(!covered(address), "{address:x} in {mappings:x?}");
        }
        give_back_code();
        assert_eq!((text.as_str(), mappings.len() <= 2), ("kept", true), "{mappings:x?}");
    }
}
