//! The bytes of a compressed file, unpacked on the way: so much at a time, and so much in all.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use super::{Form, Refusal, refused};
use crate::gzip;

/// Bytes read from the file at once.
const BUFFER: usize = 32 * 1024;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A file read from its beginning, wherever somebody else's reading of it stands.
pub(super) struct Source<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(into, self.at)?;
        self.at = self.at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

type Packed<'a> = BufReader<Source<'a>>;

/// gzip, member by member.
struct Members<'a> {
    packed: Packed<'a>,
    decoder: gzip::Decoder,
}

impl Read for Members<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.packed.fill_buf()?;
            let (taken, given) = self.decoder.step(input, into).map_err(io::Error::other)?;
            self.packed.consume(taken);
            if given > 0 || into.is_empty() {
                return Ok(given);
            }
            if taken == 0 {
                let whole = self.decoder.is_whole();
                return if whole { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

enum Decoder<'a> {
    Gzip(Members<'a>),
    #[cfg(feature = "zstd")]
    Zstd(Box<zstd::Frames<Packed<'a>>>),
    #[cfg(not(feature = "zstd"))]
    Zstd,
}

/// What comes out of a compressed file.
pub(super) struct Stream<'a> {
    decoder: Decoder<'a>,
    most: u64,
    left: u64,
}

impl<'a> Stream<'a> {
    /// The stream of at most `most` bytes. None: the file is not compressed by anything known.
    pub(super) fn open(file: &'a File, most: u64) -> io::Result<Option<Self>> {
        let mut packed = BufReader::with_capacity(BUFFER, Source { file, at: 0 });
        let start = packed.fill_buf()?;
        let decoder = if start.starts_with(&GZIP) {
            Decoder::Gzip(Members { packed, decoder: gzip::Decoder::new(true) })
        } else if start.starts_with(&ZSTD) {
            #[cfg(feature = "zstd")]
            let decoder = Decoder::Zstd(Box::new(zstd::Frames::new(packed)));
            #[cfg(not(feature = "zstd"))]
            let decoder = Decoder::Zstd;
            decoder
        } else {
            return Ok(None);
        };
        Ok(Some(Self { decoder, most, left: most }))
    }

    pub(super) const fn form(&self) -> Form {
        match self.decoder {
            Decoder::Gzip(_) => Form::TarGz,
            #[cfg(feature = "zstd")]
            Decoder::Zstd(_) => Form::TarZst,
            #[cfg(not(feature = "zstd"))]
            Decoder::Zstd => Form::TarZst,
        }
    }

    /// The bytes that may come in all.
    pub(super) const fn most(&self) -> u64 {
        self.most
    }

    /// The bytes that may still come.
    pub(super) const fn left(&self) -> u64 {
        self.left
    }

    /// Some of the next bytes; 0 at the end.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, Refusal> {
        let count = loop {
            let read = match &mut self.decoder {
                Decoder::Gzip(gzip) => gzip.read(into),
                #[cfg(feature = "zstd")]
                Decoder::Zstd(frames) => frames.read(into),
                #[cfg(not(feature = "zstd"))]
                Decoder::Zstd => return Err(refused(NO_ZSTD)),
            };
            match read {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.explain(error)),
            }
        };
        let length = u64::try_from(count).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(length).ok_or_else(|| {
            let most = self.most;
            refused(&format!(
                "the archive unpacks to more than the {most} bytes allowed for a file of its size"
            ))
        })?;
        Ok(count)
    }

    /// All of the next bytes, or what there is of them.
    pub(super) fn fill(&mut self, into: &mut [u8]) -> Result<usize, Refusal> {
        let mut at: usize = 0;
        while let Some(space) = into.get_mut(at..).filter(|space| !space.is_empty()) {
            match self.read(space)? {
                0 => break,
                count => at = at.saturating_add(count),
            }
        }
        Ok(at)
    }

    fn explain(&self, error: io::Error) -> Refusal {
        // What the kernel says has a number; the rest is the decoder's.
        if error.raw_os_error().is_some() {
            return Refusal::Disk { doing: "reading the archive".to_owned(), error };
        }
        let how = match self.form() {
            Form::TarZst => "zstd",
            Form::TarGz | Form::Raw => "gzip",
        };
        refused(&match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("the archive is cut short within its {how}"),
            io::ErrorKind::Unsupported => format!("the archive's {how} is refused: {error}"),
            _ => format!("the archive's {how} is damaged, or there are bytes behind it: {error}"),
        })
    }
}

#[cfg(not(feature = "zstd"))]
const NO_ZSTD: &str = "the package is packed with zstd, for which this Chiton was not built: pack it with gzip (.tar.gz), or \
                       build with --features zstd";

#[cfg(feature = "zstd")]
pub(super) mod zstd {
    //! zstd, frame by frame.

    use std::io::{self, BufRead, Read};

    use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
    use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

    /// Bytes that a frame may refer back to, so what unpacking takes in memory: what `zstd -19` uses at most.
    pub(crate) const MAX_WINDOW: u64 = 8 << 20;

    pub(in super::super) struct Frames<R> {
        source: R,
        decoder: FrameDecoder,
        fresh: bool,
    }

    impl<R: BufRead> Frames<R> {
        pub(super) fn new(source: R) -> Self {
            let mut decoder = FrameDecoder::new();
            decoder.set_max_window_size(MAX_WINDOW);
            Self { source, decoder, fresh: true }
        }

        /// Goes on to the next frame. False: there is none.
        fn next(&mut self) -> io::Result<bool> {
            if self
                .decoder
                .get_checksum_from_data()
                .is_some_and(|sum| self.decoder.get_calculated_checksum() != Some(sum))
            {
                return Err(io::Error::other("a frame's checksum is wrong"));
            }
            loop {
                let start = self.source.fill_buf()?;
                if start.is_empty() {
                    return Ok(false);
                }
                if core::mem::take(&mut self.fresh) {
                    // A decoder that has seen a header takes the whole window at the next. The first would grow its own
                    // by doubling, which peaks at twice as much.
                    let _ = self.decoder.reset(start);
                }
                match self.decoder.reset(&mut self.source) {
                    Ok(()) => return Ok(true),
                    Err(FrameDecoderError::ReadFrameHeaderError(
                        ReadFrameHeaderError::SkipFrame { length, .. },
                    )) => self.skip(u64::from(length))?,
                    Err(FrameDecoderError::WindowSizeTooBig { requested, max }) => {
                        let text = format!(
                            "it wants a window of {requested} bytes, allowed are {max}: pack it with `zstd -19` or less, \
                             and without --long"
                        );
                        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
                    }
                    Err(error) => return Err(plain(error)),
                }
            }
        }

        fn skip(&mut self, length: u64) -> io::Result<()> {
            let skipped = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
            if skipped < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
        }
    }

    impl<R: BufRead> Read for Frames<R> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            loop {
                if self.decoder.can_collect() > 0 {
                    return self.decoder.read(into);
                }
                if !self.decoder.is_finished() {
                    let one = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder.decode_blocks(&mut self.source, one).map_err(plain)?;
                } else if !self.next()? {
                    return Ok(0);
                }
            }
        }
    }

    /// The kernel's or the file's own end where that is the cause, else the decoder's words.
    fn plain(error: FrameDecoderError) -> io::Error {
        let mut cause: Option<&(dyn core::error::Error + 'static)> = Some(&error);
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<io::Error>() {
                return match io.raw_os_error() {
                    Some(number) => io::Error::from_raw_os_error(number),
                    None => io.kind().into(),
                };
            }
            cause = inner.source();
        }
        io::Error::other(error)
    }
}
