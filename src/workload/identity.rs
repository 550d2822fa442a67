//! Who a workload runs as: `/etc/passwd` and `/etc/group`, read by hand. No name service is asked: it could hang.

use core::fmt;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// Bytes read of `/etc/passwd` and of `/etc/group`.
pub const MAX_ACCOUNTS: u64 = 1 << 20;
/// Supplementary groups of one user; the kernel would take 65536.
pub const MAX_GROUPS: usize = 256;

/// The numbers of a user, and what goes with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups; none where the group was given (`uid:gid`).
    pub groups: Vec<u32>,
    /// Name, where `/etc/passwd` has the user.
    pub name: Option<String>,
    /// Home directory, likewise.
    pub home: Option<PathBuf>,
}

/// Why a `user` setting names nobody.
#[derive(Debug)]
pub enum IdentityError {
    /// No such user in `/etc/passwd`.
    NoUser(String),
    /// A number without a group, and no entry to tell the group.
    NoGroupFor(String),
    /// No such group in `/etc/group`.
    NoGroup(String),
    /// More than [`MAX_GROUPS`].
    TooManyGroups(String),
    /// A file of accounts could not be read.
    Unreadable(&'static str, io::Error),
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUser(name) => {
                write!(f, "user {name}: not in /etc/passwd; create it, or give uid:gid")
            }
            Self::NoGroupFor(uid) => {
                write!(f, "user {uid}: not in /etc/passwd, so its group is unknown; give uid:gid")
            }
            Self::NoGroup(name) => {
                write!(f, "group {name}: not in /etc/group; create it, or give uid:gid")
            }
            Self::TooManyGroups(name) => write!(f, "user {name}: in more than {MAX_GROUPS} groups"),
            Self::Unreadable(path, error) => write!(f, "{path}: {error}"),
        }
    }
}

impl Error for IdentityError {}

impl Identity {
    /// Finds `name`, `uid`, `uid:gid` or `name:group`.
    ///
    /// # Errors
    /// When the accounts cannot be read or do not have it.
    pub fn find(user: &str) -> Result<Self, IdentityError> {
        // Two numbers need no file, and there may be none.
        if let Some((uid, gid)) = user.split_once(':')
            && let (Some(uid), Some(gid)) = (number(uid), number(gid))
        {
            let passwd = read("/etc/passwd").unwrap_or_default();
            return Ok(Self::with_group(uid, gid, &passwd));
        }
        Self::among(user, &read("/etc/passwd")?, &read("/etc/group")?)
    }

    /// The same among given accounts: the texts of `passwd` and `group`.
    ///
    /// # Errors
    /// When they do not have it.
    pub fn among(user: &str, passwd: &str, group: &str) -> Result<Self, IdentityError> {
        let (user, wanted_group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let account = match number(user) {
            Some(uid) => accounts(passwd).find(|account| account.uid == uid),
            None => accounts(passwd).find(|account| account.name == user),
        };
        if let Some(wanted) = wanted_group {
            let uid = number(user).or(account.map(|account| account.uid));
            let uid = uid.ok_or_else(|| IdentityError::NoUser(user.to_owned()))?;
            let found = || groups(group).find(|group| group.name == wanted).map(|group| group.gid);
            let gid = number(wanted).or_else(found);
            let gid = gid.ok_or_else(|| IdentityError::NoGroup(wanted.to_owned()))?;
            return Ok(Self::with_group(uid, gid, passwd));
        }
        let Some(account) = account else {
            let user = user.to_owned();
            return Err(match number(&user) {
                Some(_) => IdentityError::NoGroupFor(user),
                None => IdentityError::NoUser(user),
            });
        };
        let member = |group: &Group<'_>| group.members.split(',').any(|name| name == account.name);
        let mut all = vec![account.gid];
        for group in groups(group).filter(member) {
            if all.len() >= MAX_GROUPS {
                return Err(IdentityError::TooManyGroups(account.name.to_owned()));
            }
            if !all.contains(&group.gid) {
                all.push(group.gid);
            }
        }
        Ok(Self { groups: all, ..account.identity(account.gid) })
    }

    fn with_group(uid: u32, gid: u32, passwd: &str) -> Self {
        match accounts(passwd).find(|account| account.uid == uid) {
            Some(account) => account.identity(gid),
            None => Self { uid, gid, ..Self::default() },
        }
    }
}

/// An id; the largest number means "no change" to the kernel and is nobody's.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

fn read(path: &'static str) -> Result<String, IdentityError> {
    let unreadable = |error| IdentityError::Unreadable(path, error);
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_ACCOUNTS)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[derive(Clone, Copy)]
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Account<'_> {
    fn identity(self, gid: u32) -> Identity {
        Identity {
            uid: self.uid,
            gid,
            groups: Vec::new(),
            name: Some(self.name.to_owned()),
            home: (!self.home.is_empty()).then(|| self.home.into()),
        }
    }
}

/// `name:password:uid:gid:comment:home:shell`; lines of any other shape are skipped.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// `name:password:gid:member,member`.
fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\n+::::::\n:x:5:5::/:\nbad:x:many:1::/:\n\
                          otel:x:990:991:Collector:/var/lib/otel:/sbin/nologin\nshort:x:7:8\n";
    const GROUP: &str =
        "root:x:0:\notel:x:991:\nadm:x:4:syslog,otel\ndialout:x:20:otel\nnot:x:21:otel2\n";

    fn among(user: &str) -> Result<Identity, String> {
        Identity::among(user, PASSWD, GROUP).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_brings_its_group_groups_and_home() {
        let otel = Identity {
            uid: 990,
            gid: 991,
            groups: vec![991, 4, 20],
            name: Some("otel".to_owned()),
            home: Some("/var/lib/otel".into()),
        };
        assert_eq!(among("otel").unwrap(), otel);
        assert_eq!(among("990").unwrap(), otel);
        assert_eq!(among("short").unwrap().home, None);
    }

    #[test]
    fn a_given_group_is_the_only_one() {
        let given = among("otel:dialout").unwrap();
        assert_eq!((given.uid, given.gid, given.groups), (990, 20, vec![]));
        let numbers = among("1234:5678").unwrap();
        assert_eq!(numbers, Identity { uid: 1234, gid: 5678, ..Identity::default() });
        assert_eq!(Identity::find("1234567:7654321").unwrap().gid, 7_654_321);
    }

    #[test]
    fn nobody_is_guessed() {
        for (user, said) in [
            ("ghost", "user ghost: not in /etc/passwd"),
            ("1234", "its group is unknown"),
            ("otel:ghosts", "group ghosts: not in /etc/group"),
            ("ghost:4", "user ghost"),
            ("4294967295:1", "user 4294967295"),
            ("+1:1", "user +1"),
            ("bad", "user bad"),
            ("", "user "),
        ] {
            let error = among(user).unwrap_err();
            assert!(error.contains(said), "{user}: {error}");
        }
    }
}
