//! A verified file becomes a tree: unpacked, or moved as it is.

use std::io;
use std::path::Path;

use super::unpack::{self, Form, Limits, Refusal};
use crate::agent::packages::Unobtained;
use crate::store::{self, Store, TreeFile, VerifiedPackage};

/// Unpacks or moves it. Afterwards [`Store::has_tree`] finds it.
///
/// # Errors
/// What is wrong with the archive, or the disk; nothing is left then.
pub fn install(store: &Store, package: VerifiedPackage) -> Result<(), Unobtained> {
    let disk = |error: io::Error| Unobtained {
        text: format!("{}: {error}", store.packages_dir().display()),
        transient: true,
    };
    let form = unpack::form(package.file()).map_err(disk)?;
    let tree = store.new_tree().map_err(disk)?;
    let mut tree = Unpacking(tree);
    let filled = match form {
        Form::Raw => tree.0.adopt(&package).map_err(disk),
        Form::TarGz | Form::TarZst => unpack::unpack(package.file(), &mut tree, &Limits::default())
            .map(|_| ())
            .map_err(|refusal| Unobtained {
                transient: matches!(refusal, Refusal::Disk { .. }),
                text: refusal.to_string(),
            }),
    };
    match filled {
        Ok(()) => {
            let sealed = tree.0.seal(&package).map_err(disk);
            if sealed.is_ok() {
                package.consume(store);
            }
            sealed
        }
        Err(error) => {
            tree.0.abandon();
            if !error.transient {
                package.consume(store);
            }
            Err(error)
        }
    }
}

struct Unpacking<'a>(store::Tree<'a>);

impl unpack::Tree for Unpacking<'_> {
    type File = TreeFile;

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.0.directory(path)
    }

    fn file(&mut self, path: &Path, executable: bool) -> io::Result<TreeFile> {
        self.0.file(path, executable)
    }

    fn finish(&mut self, file: TreeFile) -> io::Result<()> {
        self.0.finish(file)
    }

    fn symlink(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.0.symlink(path, target)
    }
}
