//! Credentials for other programs: stable paths in a directory of the settings, exchanged as one.
//!
//! ```text
//! DIR/cert.pem -> ..data/cert.pem     likewise key.pem and ca.pem: what others open
//! DIR/..data -> ..7                   one rename exchanges them all
//! DIR/..7/…                           the files
//! ```
//!
//! This writes outside of `state_dir`, the only thing that does, and only under these names.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Contents, FILES, MAX_PEM};
use crate::secret::Secret;
use crate::settings::Tls;
use crate::store::disk::{self, Access, Disk, Real};
use crate::store::temporary;

const DATA: &str = "..data";
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// Places what `tls` names for others, readable by the group of `directory` where Chiton may give it files, else by
/// its own. Whether that changed anything; without a client certificate what lies there stays.
///
/// # Errors
/// What cannot be read or written: what lies there is whole, the old or the new.
pub fn export(tls: &Tls, directory: &Path) -> Result<bool, String> {
    let Some(client) = &tls.client else { return Ok(false) };
    let paths = [Some(&client.cert_file), Some(&client.key_file), tls.ca_file.as_ref()];
    let mut files = Contents::default();
    for (file, path) in files.iter_mut().zip(paths) {
        if let Some(path) = path {
            let read = std::fs::File::open(path).and_then(|file| disk::read_all(file, MAX_PEM));
            *file =
                Some(Secret::new(read.map_err(|error| format!("{}: {error}", path.display()))?));
        }
    }
    let disk = Real::new(directory.to_owned());
    let group = disk.make_root().and_then(|()| std::fs::metadata(directory)).map(|it| it.gid());
    group
        .and_then(|group| place(&disk, &files, Some(group)))
        .map_err(|error| format!("opamp.credentials.export {}: {error}", directory.display()))
}

/// The same on any disk.
///
/// # Errors
/// The step that failed.
pub(in crate::store) fn place(
    disk: &dyn Disk,
    files: &Contents,
    group: Option<u32>,
) -> io::Result<bool> {
    let names = disk.names(Path::new(""))?;
    for name in FILES.into_iter().chain([DATA]).filter(|name| names.iter().any(|it| it == name)) {
        let target = disk.target(Path::new(name)).ok();
        let target = target.as_deref().and_then(Path::to_str).unwrap_or_default();
        let ours = if name == DATA { number(target).is_some() } else { target == link_of(name) };
        if !ours {
            let text = format!("{name} is not Chiton's: move it away");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
    }
    let current = disk.target(Path::new(DATA)).ok();
    let lies_there = |(name, file): (&str, &Option<Secret<Vec<u8>>>)| {
        let read = current.as_ref().map(|it| disk.read(&it.join(name), MAX_PEM));
        let linked = names.iter().any(|it| it == name) == file.is_some();
        linked && read.and_then(Result::ok).as_ref() == file.as_ref().map(Secret::expose)
    };
    let changes = !FILES.into_iter().zip(files).all(lies_there);
    if changes {
        exchange(disk, files, &names, group)?;
    }
    prune(disk);
    Ok(changes)
}

fn exchange(
    disk: &dyn Disk,
    files: &Contents,
    names: &[String],
    group: Option<u32>,
) -> io::Result<()> {
    let highest = names.iter().filter_map(|name| number(name)).max().unwrap_or(0);
    let next = highest.checked_add(1).ok_or(io::ErrorKind::InvalidData)?;
    let next = PathBuf::from(format!("..{next}"));
    // Who may not give files away keeps the group that they are made with: that of a setgid directory, or ours.
    if let Err(error) = fill(disk, &next, files, group) {
        remove(disk, &next);
        if error.kind() != io::ErrorKind::PermissionDenied || group.is_none() {
            return Err(error);
        }
        fill(disk, &next, files, None)?;
    }
    // Links first: with the exchange all of them lead somewhere.
    for (name, file) in FILES.into_iter().zip(files) {
        if file.is_some() && !names.iter().any(|it| it == name) {
            disk.link(Path::new(name), Path::new(&link_of(name)))?;
        }
    }
    let data = Path::new(DATA);
    let temporary = temporary(data);
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    disk.link(&temporary, &next)?;
    disk.sync(Path::new(""))?;
    disk.rename(&temporary, data)?;
    disk.sync(Path::new(""))?;
    for (name, file) in FILES.into_iter().zip(files) {
        if file.is_none() && names.iter().any(|it| it == name) {
            disk.remove(Path::new(name))?;
        }
    }
    Ok(())
}

fn fill(disk: &dyn Disk, into: &Path, files: &Contents, group: Option<u32>) -> io::Result<()> {
    disk.make_directory(into, Access { mode: DIRECTORY_MODE, group })?;
    for (name, file) in FILES.into_iter().zip(files) {
        if let Some(file) = file {
            disk.create(&into.join(name), file.expose(), Access { mode: FILE_MODE, group })?;
        }
    }
    disk.sync(into)
}

/// Removes what was exchanged before, and what a crash left.
fn prune(disk: &dyn Disk) {
    let Ok(current) = disk.target(Path::new(DATA)) else { return };
    for name in disk.names(Path::new("")).unwrap_or_default() {
        if number(&name).is_some() && Path::new(&name) != current {
            remove(disk, Path::new(&name));
        }
    }
}

/// Removes our files in it, and it: what somebody else put there stays.
fn remove(disk: &dyn Disk, directory: &Path) {
    for name in FILES {
        let _ = disk.remove(&directory.join(name));
    }
    let _ = disk.remove_directory(directory);
}

fn link_of(name: &str) -> String {
    format!("{DATA}/{name}")
}

/// Of `..7`.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix("..")?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;
    use crate::settings::{ClientCertificate, TlsVersion};
    use crate::store::simulated::{Image, Manners, Simulated};

    fn files(number: u8, trust: bool) -> Contents {
        let file = |name: &str| Some(Secret::new(format!("{name} {number}").into_bytes()));
        [file("certificate"), file("key"), file("roots").filter(|_| trust)]
    }

    /// As who opens the stable paths sees it. [`None`]: nothing was exported yet.
    fn seen(disk: &Simulated) -> io::Result<Option<Contents>> {
        let names = disk.names(Path::new(""))?;
        let Ok(current) = disk.target(Path::new(DATA)) else { return Ok(None) };
        let mut seen = Contents::default();
        for (file, name) in seen.iter_mut().zip(FILES) {
            if names.iter().any(|it| it == name) {
                assert_eq!(disk.target(Path::new(name))?, Path::new(&link_of(name)));
                let bytes = disk.read(&current.join(name), MAX_PEM);
                // The link to roots that are no longer there goes last.
                let bytes = bytes
                    .or_else(|error| if name == FILES[2] { Ok(Vec::new()) } else { Err(error) })?;
                *file = Some(Secret::new(bytes)).filter(|bytes| !bytes.expose().is_empty());
            }
        }
        Ok(Some(seen))
    }

    fn crash_everywhere(
        base: &Image,
        before: Option<&Contents>,
        next: &Contents,
        lazy: bool,
    ) -> bool {
        let run = |steps| {
            let disk = Simulated::with(base.clone(), Manners { steps, lazy, full_from: None });
            let placed = place(&disk, next, None);
            (disk, placed)
        };
        let (whole, placed) = run(None);
        assert!(placed.unwrap());
        for steps in 0..=whole.steps() {
            let (cut, placed) = run(Some(steps));
            for image in cut.image().after_a_power_cut() {
                let disk = Simulated::with(image, Manners::default());
                let Ok(seen_now) = seen(&disk) else { return false };
                let is_old = seen_now.as_ref() == before && placed.is_err();
                if !is_old && seen_now.as_ref() != Some(next) {
                    return false;
                }
                if place(&disk, next, None).is_err() || seen(&disk).unwrap().as_ref() != Some(next)
                {
                    return false;
                }
                let left = disk.names(Path::new("")).unwrap();
                assert_eq!(
                    left.iter().filter(|name| number(name).is_some()).count(),
                    1,
                    "{left:?}"
                );
            }
        }
        true
    }

    #[test]
    fn no_crash_exports_a_certificate_with_another_key() {
        let disk = Simulated::empty();
        let mut before = None;
        for next in [files(1, false), files(2, true), files(3, false)] {
            assert!(crash_everywhere(&disk.image(), before.as_ref(), &next, false), "{next:?}");
            assert!(!crash_everywhere(&disk.image(), before.as_ref(), &next, true), "not noticed");
            assert!(place(&disk, &next, None).unwrap());
            disk.sync(Path::new("")).unwrap();
            let steps = disk.steps();
            assert!(!place(&disk, &next, None).unwrap());
            assert_eq!(disk.steps(), steps, "what is the same is not written again");
            before = Some(next);
        }
    }

    fn tls(dir: &TempDir, number: u8) -> Tls {
        let cert_file = dir.path().join("agent.pem");
        let key_file = dir.path().join("agent.key");
        fs::write(&cert_file, format!("certificate {number}")).unwrap();
        fs::write(&key_file, format!("key {number}")).unwrap();
        Tls {
            ca_file: None,
            client: Some(ClientCertificate { cert_file, key_file }),
            include_system_ca_certs_pool: false,
            min_version: TlsVersion::V12,
            max_version: TlsVersion::V13,
            pinned_spki_sha256: Vec::new(),
            insecure_skip_verify: false,
            cipher_suites: Vec::new(),
            enroll: None,
            renew_before: core::time::Duration::ZERO,
        }
    }

    #[test]
    fn others_open_stable_paths() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("for/others");
        let without = Tls { client: None, ..tls(&dir, 1) };
        assert_eq!(export(&without, &to), Ok(false));
        assert!(!to.exists());
        let group = |path: &Path| fs::metadata(path).unwrap().gid();
        for number in [1, 2] {
            assert_eq!(export(&tls(&dir, number), &to), Ok(true));
            assert_eq!(export(&tls(&dir, number), &to), Ok(false));
            for (name, text) in [("cert.pem", "certificate"), ("key.pem", "key")] {
                let path = to.join(name);
                assert_eq!(fs::read_to_string(&path).unwrap(), format!("{text} {number}"));
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
                assert_eq!(group(&path), group(&to));
            }
        }
        // Roots come, and go.
        let ca_file = Some(dir.path().join("roots.pem"));
        fs::write(dir.path().join("roots.pem"), "roots").unwrap();
        assert_eq!(export(&Tls { ca_file, ..tls(&dir, 2) }, &to), Ok(true));
        assert_eq!(fs::read_to_string(to.join("ca.pem")).unwrap(), "roots");
        assert_eq!(export(&tls(&dir, 2), &to), Ok(true));
        assert!(fs::symlink_metadata(to.join("ca.pem")).is_err());
        assert_eq!(export(&without, &to), Ok(false));
        assert_eq!(fs::read_to_string(to.join("key.pem")).unwrap(), "key 2");
    }

    #[test]
    fn what_others_put_there_stays() {
        for (name, link) in [("cert.pem", false), ("ca.pem", true), ("..data", true)] {
            let dir = tempfile::tempdir().unwrap();
            let to = dir.path().join("others");
            fs::create_dir(&to).unwrap();
            let path = to.join(name);
            if link {
                symlink("/elsewhere", &path).unwrap();
            } else {
                fs::write(&path, "x").unwrap();
            }
            let error = export(&tls(&dir, 1), &to).unwrap_err();
            assert!(error.starts_with("opamp.credentials.export /"), "{error}");
            assert!(error.ends_with(&format!("{name} is not Chiton's: move it away")), "{error}");
            assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
        }
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("others");
        fs::create_dir_all(to.join("..7")).unwrap();
        fs::write(to.join("..7/notes"), "x").unwrap();
        fs::write(to.join("server.pem"), "x").unwrap();
        assert_eq!(export(&tls(&dir, 1), &to), Ok(true));
        assert!(to.join("..7/notes").exists() && to.join("server.pem").exists());
        assert_eq!(fs::read_link(to.join(DATA)).unwrap(), Path::new("..8"));
    }

    #[test]
    fn what_cannot_be_read_leaves_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("others");
        assert_eq!(export(&tls(&dir, 1), &to), Ok(true));
        let next = tls(&dir, 2);
        fs::remove_file(dir.path().join("agent.key")).unwrap();
        let error = export(&next, &to).unwrap_err();
        assert!(error.contains("agent.key: No such file"), "{error}");
        assert_eq!(fs::read_to_string(to.join("cert.pem")).unwrap(), "certificate 1");
    }
}
