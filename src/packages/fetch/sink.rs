//! The other thread of a download: it hashes and writes while the main thread reads.
//!
//! Two buffers go round. The thread lives as long as the download, asleep while nothing comes.

use std::io;
use std::path::Path;

use smol::channel::{Receiver, Sender, bounded};

use crate::pool;
use crate::store::incoming::{Incoming, Mark, Received};

/// Bytes of a buffer.
pub(super) const BUFFER: usize = 128 * 1024;
/// Buffers: one is filled while the other is written.
const BUFFERS: usize = 2;
/// Orders and answers under way: the buffers, and one thing more. No more is ever asked before it is answered, so
/// the thread never waits for room.
const QUEUE: usize = BUFFERS + 1;
/// Stack of the thread, bytes.
const STACK: usize = 128 * 1024;

/// What the thread is told.
enum Order {
    /// Write so many bytes of a buffer.
    Write(Vec<u8>, usize),
    /// Drop what is there; the bytes to come are these.
    Begin(Mark),
    /// Drop what is there.
    Reset,
    /// Make sure that so many bytes more have room.
    Reserve(u64),
    /// Whether what is there has the expected hash.
    Compare,
    /// It is whole.
    Finish,
    /// It is of no use to anybody.
    Discard,
}

/// What it says.
enum Answer {
    /// A buffer, to be used again.
    Buffer(Vec<u8>),
    Done,
    Compared(bool),
    Finished(Box<Received>),
}

type Told = io::Result<Answer>;

/// What was there at the start.
pub(super) struct Found {
    /// Bytes.
    pub(super) size: u64,
    /// What they belong to.
    pub(super) mark: Mark,
}

/// The main thread's end. Dropping it ends the other thread, after what it was told.
pub(super) struct Sink {
    orders: Sender<Order>,
    answers: Receiver<Told>,
    spare: Vec<Vec<u8>>,
    /// Buffers that the thread has.
    away: usize,
}

impl Sink {
    /// Starts the thread, which opens the file and hashes what is there.
    pub(super) async fn open(packages_dir: &Path, sha256: [u8; 32]) -> io::Result<(Self, Found)> {
        let (orders, theirs) = bounded(QUEUE);
        let (answers, told) = bounded(QUEUE);
        let (opened, found) = bounded(1);
        let packages_dir = packages_dir.to_owned();
        let work = move || {
            let incoming = match Incoming::open(&packages_dir, &sha256) {
                Ok(incoming) => incoming,
                Err(error) => return drop(opened.try_send(Err(error))),
            };
            let found = Found { size: incoming.size(), mark: incoming.mark().clone() };
            if opened.try_send(Ok(found)).is_ok() {
                serve(incoming, &theirs, &answers);
            }
        };
        pool::spawn(STACK, Box::new(work)).map_err(|error| {
            io::Error::new(error.kind(), format!("no thread to write with: {error}"))
        })?;
        let found = found.recv().await.map_err(|_| gone())??;
        let spare = Vec::with_capacity(BUFFERS);
        let mut sink = Self { orders, answers: told, spare, away: 0 };
        sink.spare.resize_with(BUFFERS, || vec![0; BUFFER]);
        Ok((sink, found))
    }

    /// A buffer to fill, of [`BUFFER`] bytes.
    pub(super) async fn buffer(&mut self) -> io::Result<Vec<u8>> {
        if self.spare.is_empty() {
            self.take_back().await?;
        }
        self.spare.pop().ok_or_else(gone)
    }

    /// Hands so many bytes of it over.
    pub(super) async fn write(&mut self, buffer: Vec<u8>, count: usize) -> io::Result<()> {
        if count == 0 {
            self.spare.push(buffer);
            return Ok(());
        }
        self.away = self.away.saturating_add(1);
        self.send(Order::Write(buffer, count)).await
    }

    /// Waits until all that was handed over is written.
    pub(super) async fn settle(&mut self) -> io::Result<()> {
        while self.away > 0 {
            self.take_back().await?;
        }
        Ok(())
    }

    pub(super) async fn begin(&mut self, mark: Mark) -> io::Result<()> {
        self.order(Order::Begin(mark)).await.map(drop)
    }

    pub(super) async fn reset(&mut self) -> io::Result<()> {
        self.order(Order::Reset).await.map(drop)
    }

    pub(super) async fn reserve(&mut self, more: u64) -> io::Result<()> {
        self.order(Order::Reserve(more)).await.map(drop)
    }

    pub(super) async fn is_expected(&mut self) -> io::Result<bool> {
        Ok(matches!(self.order(Order::Compare).await?, Answer::Compared(true)))
    }

    pub(super) async fn finish(mut self) -> io::Result<Received> {
        match self.order(Order::Finish).await? {
            Answer::Finished(received) => Ok(*received),
            _ => Err(gone()),
        }
    }

    pub(super) async fn discard(mut self) {
        let _ = self.order(Order::Discard).await;
    }

    async fn order(&mut self, order: Order) -> Told {
        self.settle().await?;
        self.send(order).await?;
        self.answers.recv().await.map_err(|_| gone())?
    }

    async fn send(&mut self, order: Order) -> io::Result<()> {
        if self.orders.send(order).await.is_ok() {
            return Ok(());
        }
        // It has ended, and said why.
        loop {
            drop(self.answers.recv().await.map_err(|_| gone())??);
        }
    }

    async fn take_back(&mut self) -> io::Result<()> {
        if let Answer::Buffer(buffer) = self.answers.recv().await.map_err(|_| gone())?? {
            self.away = self.away.saturating_sub(1);
            self.spare.push(buffer);
        }
        Ok(())
    }
}

/// On the thread: does what it is told until it fails.
fn serve(mut incoming: Incoming, orders: &Receiver<Order>, answers: &Sender<Told>) {
    while let Ok(order) = orders.recv_blocking() {
        let told = match order {
            Order::Write(buffer, count) => incoming
                .write(buffer.get(..count).unwrap_or_default())
                .map(|()| Answer::Buffer(buffer)),
            Order::Begin(mark) => incoming.begin(mark).map(|()| Answer::Done),
            Order::Reset => incoming.reset().map(|()| Answer::Done),
            Order::Reserve(more) => incoming.reserve(more).map(|()| Answer::Done),
            Order::Compare => Ok(Answer::Compared(incoming.is_expected())),
            Order::Finish => {
                let finished =
                    incoming.finish().map(|received| Answer::Finished(Box::new(received)));
                return drop(answers.try_send(finished));
            }
            Order::Discard => {
                incoming.discard();
                return drop(answers.try_send(Ok(Answer::Done)));
            }
        };
        let failed = told.is_err();
        if answers.try_send(told).is_err() || failed {
            return;
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that writes has ended")
}
