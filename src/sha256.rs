//! SHA-256 by ring, which is linked for TLS: in assembler, as fast as the CPU can, also in a binary that is optimised
//! for size. For 32-bit x86 ring has no assembler: there it is by sha2, which uses the CPU's own instructions where it has
//! them, and a package takes a third of the time.

use by::Context;

#[cfg(not(target_arch = "x86"))]
mod by {
    use ring::digest;

    #[derive(Clone)]
    pub(super) struct Context(digest::Context);

    impl Context {
        pub(super) fn new() -> Self {
            Self(digest::Context::new(&digest::SHA256))
        }

        pub(super) fn update(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        pub(super) fn finish(self) -> [u8; 32] {
            let mut digest = [0; 32];
            digest.iter_mut().zip(self.0.finish().as_ref()).for_each(|(to, from)| *to = *from);
            digest
        }
    }
}

#[cfg(target_arch = "x86")]
mod by {
    use sha2::Digest as _;

    #[derive(Clone)]
    pub(super) struct Context(sha2::Sha256);

    impl Context {
        pub(super) fn new() -> Self {
            Self(sha2::Sha256::new())
        }

        pub(super) fn update(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        pub(super) fn finish(self) -> [u8; 32] {
            self.0.finalize().into()
        }
    }
}

/// A digest in the making.
#[derive(Clone)]
pub struct Sha256(Context);

impl Sha256 {
    /// Of nothing yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "nothing asks for a default")]
    pub fn new() -> Self {
        Self(Context::new())
    }

    /// Of these bytes too.
    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes.as_ref());
    }

    /// What it is.
    #[must_use]
    pub fn finalize(self) -> [u8; 32] {
        self.0.finish()
    }

    /// Of these bytes.
    #[must_use]
    pub fn digest(bytes: impl AsRef<[u8]>) -> [u8; 32] {
        let mut hash = Self::new();
        hash.update(bytes);
        hash.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::Sha256;

    #[test]
    fn it_is_sha_256() {
        let hex =
            |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(Sha256::digest(b"abc")), abc);
        let mut parts = Sha256::new();
        parts.update("a");
        parts.update([b'b', b'c']);
        assert_eq!(hex(parts.clone().finalize()), abc);
    }
}
