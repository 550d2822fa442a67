//! landlock: writing only below certain directories, for us and for all that we start. Reading and executing is free.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::sys;

/// `linux/landlock.h`: what writes. To read, to execute and ioctl on devices are not handled, and so free.
const WRITE_FILE: u64 = 1 << 1;
/// Remove and make entries of every kind.
const ENTRIES: u64 = 0b1_1111_1111 << 4;
/// Rename and link from one directory to another, ABI 2.
const REFER: u64 = 1 << 13;
/// ABI 3.
const TRUNCATE: u64 = 1 << 14;
/// Without [`REFER`] every rename between directories is refused, and packages need one.
const LEAST_ABI: i32 = 2;
const TRUNCATE_ABI: i32 = 3;

/// What named commands may count on beside our own directories.
const FOR_COMMANDS: [&str; 4] = ["/tmp", "/var/tmp", "/run", "/dev/shm"];
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty"];

/// From now on this process and its children write only below `own` and where any command may. The ABI.
///
/// # Errors
/// Why it is not in force.
pub(super) fn restrict(own: &[PathBuf]) -> Result<i32, String> {
    let abi = sys::landlock_abi().map_err(|error| match error {
        Errno::NOSYS => "the kernel has no landlock".to_owned(),
        Errno::OPNOTSUPP => "landlock is off in this kernel (its parameter lsm=)".to_owned(),
        error => format!("landlock: {error}"),
    })?;
    if abi < LEAST_ABI {
        return Err(format!("the kernel's landlock is too old: ABI {abi}, {LEAST_ABI} is needed"));
    }
    let file = if abi < TRUNCATE_ABI { WRITE_FILE } else { WRITE_FILE | TRUNCATE };
    let directory = file | ENTRIES | REFER;
    let done = || {
        let ruleset = sys::landlock_ruleset(directory)?;
        let allow = |path: &Path, rights| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let open = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
            sys::landlock_allow(ruleset.as_fd(), open.as_fd(), rights)
        };
        for path in own {
            allow(path, directory)?;
        }
        // TMPDIR too. What is not there needs no rule.
        let temporary = std::env::temp_dir();
        for path in FOR_COMMANDS.into_iter().map(Path::new).chain([temporary.as_path()]) {
            let _ = allow(path, directory);
        }
        for path in DEVICES {
            let _ = allow(Path::new(path), file);
        }
        sys::landlock_restrict(ruleset.as_fd())
    };
    done().map(|()| abi).map_err(|error: Errno| format!("landlock: {error}"))
}
