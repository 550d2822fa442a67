//! One thread, one epoll: the readiness and the timers behind every future of the agent.
//!
//! Why not async-io: its helper thread and its hand-overs cost four to twelve wake-ups for one heartbeat and
//! its reply; this costs two (`docs/decisions.md`, "One thread, one epoll"). File descriptors are registered once,
//! edge-triggered, so that waiting costs no system call but `epoll_wait` itself. Wakers may be called from any
//! thread (`pool` does); everything else stays on the thread that calls [`block_on`].

use core::cell::RefCell;
use core::future::Future;
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::Wake;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use smol::io::{AsyncRead, AsyncWrite};

use crate::clock::{self, Mono};

/// Readiness events taken from the kernel at once.
const EVENTS_PER_WAIT: usize = 16;
/// The longest sleep: an hour keeps the time-out within the 32 bits of milliseconds that `epoll_wait` takes.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// The key of the descriptor by which other threads wake this one.
const NOTIFY_KEY: u64 = 0;

thread_local! {
    static REACTOR: RefCell<Option<Reactor>> = const { RefCell::new(None) };
}

struct Reactor {
    epoll: OwnedFd,
    signal: Arc<Signal>,
    sources: BTreeMap<u64, Interest>,
    timers: BTreeMap<(Mono, u64), Waker>,
    next_key: u64,
}

/// The tasks that wait for one descriptor.
#[derive(Default)]
struct Interest {
    read: Option<Waker>,
    write: Option<Waker>,
}

/// How the executor's wakers reach the sleeping thread.
struct Signal {
    woken: AtomicBool,
    sleeping: AtomicBool,
    eventfd: OwnedFd,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        // A wake-up from this very thread finds it awake and costs nothing.
        if self.sleeping.load(Ordering::SeqCst) {
            // A full counter means that a wake-up is pending already.
            let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
        }
    }
}

impl Reactor {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(
            &epoll,
            &eventfd,
            epoll::EventData::new_u64(NOTIFY_KEY),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        let signal = Arc::new(Signal {
            woken: AtomicBool::new(true),
            sleeping: AtomicBool::new(false),
            eventfd,
        });
        Ok(Self {
            epoll,
            signal,
            sources: BTreeMap::new(),
            timers: BTreeMap::new(),
            next_key: NOTIFY_KEY.saturating_add(1),
        })
    }

    /// Keys are never reused: 2^64 of them outlast the device.
    fn take_key(&mut self) -> u64 {
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1);
        key
    }

    /// Sleeps until a descriptor is ready, a timer is due or another thread calls; returns whom to wake.
    #[expect(clippy::disallowed_methods, reason = "timers are the reactor's business")]
    fn wait(&mut self, ready: &mut Vec<Waker>) -> io::Result<()> {
        let timeout = if self.signal.woken.load(Ordering::SeqCst) {
            Duration::ZERO
        } else {
            let next = self.timers.first_key_value().map(|((at, _), _)| *at);
            next.map_or(LONGEST_SLEEP, |at| at.since(clock::now().mono).min(LONGEST_SLEEP))
        };
        let mut events =
            [const { core::mem::MaybeUninit::<epoll::Event>::uninit() }; EVENTS_PER_WAIT];
        let events = match epoll::wait(&self.epoll, &mut events[..], Some(&round_up(timeout))) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => &mut [],
            Err(error) => return Err(error.into()),
        };
        for event in events {
            let key = event.data.u64();
            if key == NOTIFY_KEY {
                let mut counter = [0; 8];
                let _ = rustix::io::read(&self.signal.eventfd, &mut counter);
                continue;
            }
            let Some(interest) = self.sources.get_mut(&key) else { continue };
            let flags = event.flags;
            let failed = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | failed) {
                ready.extend(interest.read.take());
            }
            if flags.intersects(epoll::EventFlags::OUT | failed) {
                ready.extend(interest.write.take());
            }
        }
        if !self.timers.is_empty() {
            let due = (clock::now().mono, u64::MAX);
            let later = self.timers.split_off(&due);
            ready.extend(core::mem::replace(&mut self.timers, later).into_values());
        }
        Ok(())
    }
}

/// `epoll_wait` counts whole milliseconds; rounding down would wake before a timer is due, and again.
fn round_up(timeout: Duration) -> Timespec {
    let millis = i64::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i64::MAX);
    let seconds = millis.checked_div(1000).unwrap_or(0);
    let rest = millis.checked_rem(1000).unwrap_or(0).saturating_mul(1_000_000);
    Timespec { tv_sec: seconds, tv_nsec: rest }
}

/// Runs `body` with this thread's reactor, made at the first use.
fn with<R>(body: impl FnOnce(&mut Reactor) -> R) -> io::Result<R> {
    REACTOR.with(|cell| {
        let mut slot = cell
            .try_borrow_mut()
            .map_err(|_| io::Error::other("reactor used from within itself"))?;
        let reactor = match slot.as_mut() {
            Some(reactor) => reactor,
            None => slot.insert(Reactor::new()?),
        };
        Ok(body(reactor))
    })
}

/// Runs a future to its end on this thread, sleeping whenever nothing can go on.
///
/// # Errors
/// When the kernel refuses an epoll instance or fails to wait on it.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let mut future = pin!(future);
    let signal = with(|reactor| Arc::clone(&reactor.signal))?;
    // A new future is polled at least once, whatever an earlier call left behind.
    signal.woken.store(true, Ordering::SeqCst);
    let waker = Waker::from(Arc::clone(&signal));
    let mut context = Context::from_waker(&waker);
    let mut ready = Vec::new();
    loop {
        if signal.woken.swap(false, Ordering::SeqCst)
            && let Poll::Ready(value) = future.as_mut().poll(&mut context)
        {
            return Ok(value);
        }
        signal.sleeping.store(true, Ordering::SeqCst);
        let waited = with(|reactor| reactor.wait(&mut ready))?;
        signal.sleeping.store(false, Ordering::SeqCst);
        waited?;
        ready.drain(..).for_each(Waker::wake);
    }
}

/// A descriptor that the reactor watches. The inner value must be in non-blocking mode.
pub struct Io<T: AsFd> {
    inner: T,
    key: u64,
}

impl<T: AsFd> Io<T> {
    /// Registers a descriptor.
    ///
    /// # Errors
    /// When the kernel refuses to watch it (regular files cannot be watched).
    pub fn new(inner: T) -> io::Result<Self> {
        let key = with(|reactor| {
            let key = reactor.take_key();
            let flags = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            epoll::add(&reactor.epoll, &inner, epoll::EventData::new_u64(key), flags)?;
            reactor.sources.insert(key, Interest::default());
            io::Result::Ok(key)
        })??;
        Ok(Self { inner, key })
    }

    /// The watched value.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Waits until `operation` no longer says that it would block, trying it at each readiness to read.
    ///
    /// # Errors
    /// Those of `operation`.
    pub async fn when_readable<R>(
        &self,
        mut operation: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        core::future::poll_fn(|cx| self.poll(cx, Direction::Read, &mut operation)).await
    }

    /// The same for readiness to write.
    ///
    /// # Errors
    /// Those of `operation`.
    pub async fn when_writable<R>(
        &self,
        mut operation: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        core::future::poll_fn(|cx| self.poll(cx, Direction::Write, &mut operation)).await
    }

    fn poll<R>(
        &self,
        cx: &Context<'_>,
        direction: Direction,
        operation: &mut dyn FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            match operation(&self.inner) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return Poll::Ready(done),
            }
        }
        // Edge-triggered: the operation has just run dry, so the next edge wakes whoever is noted here. Events are
        // collected only after this poll, on this same thread: no edge can fall between.
        let noted = with(|reactor| {
            if let Some(interest) = reactor.sources.get_mut(&self.key) {
                let slot = match direction {
                    Direction::Read => &mut interest.read,
                    Direction::Write => &mut interest.write,
                };
                *slot = Some(cx.waker().clone());
            }
        });
        match noted {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl<T: AsFd> Drop for Io<T> {
    fn drop(&mut self) {
        let _ = with(|reactor| {
            reactor.sources.remove(&self.key);
            // Closing would remove it too, unless the descriptor was duplicated into a child.
            let _ = epoll::delete(&reactor.epoll, &self.inner);
        });
    }
}

impl<T: AsFd + Unpin> AsyncRead for Io<T>
where
    for<'a> &'a T: Read,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, Direction::Read, &mut |mut inner| inner.read(buf))
    }
}

impl<T: AsFd + HalfClose + Unpin> AsyncWrite for Io<T>
where
    for<'a> &'a T: Write,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, Direction::Write, &mut |mut inner| inner.write(buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.inner.half_close() {
            // The peer was faster: closed is closed.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        })
    }
}

/// A stream whose writing half can be shut down.
pub trait HalfClose {
    /// Says "no more bytes from us" to the peer.
    ///
    /// # Errors
    /// Those of `shutdown(2)`.
    fn half_close(&self) -> io::Result<()>;
}

impl HalfClose for std::net::TcpStream {
    fn half_close(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl HalfClose for std::os::unix::net::UnixStream {
    fn half_close(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Ends at a point of the monotonic clock.
#[derive(Debug)]
pub struct Timer {
    at: Mono,
    key: Option<u64>,
}

impl Timer {
    /// Ends at `at`; [`None`]: never.
    #[must_use]
    pub fn at(at: Option<Mono>) -> Self {
        Self { at: at.unwrap_or(Mono(Duration::MAX)), key: None }
    }

    /// Ends after `duration` from now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
    pub fn after(duration: Duration) -> Self {
        Self::at(Some(clock::now().mono.after(duration)))
    }

    fn cancel(&mut self) {
        if let Some(key) = self.key.take() {
            let _ = with(|reactor| reactor.timers.remove(&(self.at, key)));
        }
    }
}

impl Future for Timer {
    type Output = ();

    #[expect(clippy::disallowed_methods, reason = "timers are the reactor's business")]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.at <= clock::now().mono {
            self.cancel();
            return Poll::Ready(());
        }
        let at = self.at;
        let key = self.key;
        let registered = with(|reactor| {
            let key = key.unwrap_or_else(|| reactor.take_key());
            reactor.timers.insert((at, key), cx.waker().clone());
            key
        });
        self.key = registered.ok();
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Gives `future` until `limit` has passed; [`None`] when it took longer.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    smol::future::or(async { Some(future.await) }, async {
        Timer::after(limit).await;
        None
    })
    .await
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

    use std::os::unix::net::UnixStream;

    use smol::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Io<UnixStream>, Io<UnixStream>) {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        (Io::new(a).unwrap(), Io::new(b).unwrap())
    }

    #[test]
    fn more_than_a_socket_buffer_passes_in_both_directions_at_once() {
        const SIZE: usize = 3 << 20;
        block_on(async {
            let (mut a, mut b) = pair();
            let writer = async {
                a.write_all(&vec![7; SIZE]).await.unwrap();
                a.close().await.unwrap();
            };
            let mut got = Vec::new();
            smol::future::zip(writer, async { b.read_to_end(&mut got).await.unwrap() }).await;
            assert_eq!(got.len(), SIZE);
            assert!(got.iter().all(|byte| *byte == 7));
        })
        .unwrap();
    }

    #[test]
    fn timers_fire_in_order_and_never_early() {
        let start = clock::now().mono;
        let order = block_on(async {
            let mut order = Vec::new();
            let first = smol::future::or(
                async {
                    Timer::after(Duration::from_secs(3600)).await;
                    "late"
                },
                async {
                    Timer::after(Duration::from_millis(10)).await;
                    "early"
                },
            );
            order.push(first.await);
            order
        })
        .unwrap();
        assert_eq!(order, ["early"]);
        assert!(clock::now().mono.since(start) >= Duration::from_millis(10));
    }

    #[test]
    fn a_dropped_timer_leaves_nothing_behind() {
        block_on(async {
            assert_eq!(within(Duration::from_secs(3600), async { 1 }).await, Some(1));
            assert_eq!(within(Duration::from_millis(1), core::future::pending::<()>()).await, None);
        })
        .unwrap();
        assert_eq!(with(|reactor| reactor.timers.len()).unwrap(), 0);
    }

    #[test]
    fn another_thread_can_wake_the_sleeping_one() {
        let value = block_on(crate::pool::unblock(|| 42)).unwrap();
        assert_eq!(value, 42);
    }

    #[test]
    fn a_peer_that_goes_away_ends_the_read() {
        block_on(async {
            let (a, mut b) = pair();
            drop(a);
            let mut buf = [0; 1];
            assert_eq!(b.read(&mut buf).await.unwrap(), 0);
        })
        .unwrap();
    }
}
