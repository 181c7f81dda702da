//! One client, one task: reads, decides and applies in order, writes what waits, keeps the deadlines, cleans up on every path.
//!
//! Messages of a connection are handled one after the other; those that came with one read are one batch. A client that does
//! not read is not read from either once its replies fill its outbox: then it ends as its protocol says. Knows no HTTP.

#[cfg(test)]
mod order_tests;
pub mod reader;
pub mod stream;
pub mod tcp;
#[cfg(test)]
mod tests;
mod timers;
pub mod tls;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::apply::Batch;
use crate::config::plan::ProtocolPlan;
use crate::hub::{Connection, Lifecycle, Outbox, Progress, Socket};
use crate::live::{Arrival, Handled, Live, catch_up};
use crate::model::{Close, Now};
use crate::pipeline::{ClientLimits, Moment, Snapshot, Spent};
use crate::protocol::Frame;
use crate::protocol::wire::{Received, Wire};
use reader::{Read, Reader, Taken};
use timers::{Timer, Timers};

/// How long the other side may take over what is left to write and its own close frame.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);

/// Later than any deadline that matters. A timer set to now instead would fire at once and wake the thread without need.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads after which other tasks have their turn.
const TURN: usize = 4;

/// A connection that the hub has let in. Dropped, it is taken out of everything, whichever way it goes.
pub struct Admitted {
    /// What let it in.
    pub live: Arc<Live>,
    /// The connection.
    pub connection: Arc<Connection>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let close = if std::thread::panicking() { Close::Internal } else { self.connection.outbox.ended().unwrap_or(Close::Lost) };
        self.live.closed(&self.connection, &close, self.live.now());
    }
}

/// Runs a connection that the hub has let in and whose outbox has its socket, until it has ended, and says how it ended.
///
/// `plan` is what it was let in by, `early` what came with the handshake, `expires` when its token runs out; `held` is dropped at the end. Idle connections
/// hold the future, so it has nothing in it twice.
pub fn run(
    admitted: Admitted,
    plan: Arc<ProtocolPlan>,
    early: Bytes,
    expires: Option<Instant>,
    held: impl Send,
) -> impl Future<Output = Close> + Send {
    let mut task = Task::new(admitted, plan, early, expires);
    async move {
        let _held = &held;
        let mut deadline = pin!(sleep_until(Instant::now() + FAR));
        task.decide(Moment::Open);
        poll_fn(|cx| task.poll(cx, deadline.as_mut())).await
    }
}

struct Task {
    admitted: Admitted,
    limits: ClientLimits,
    /// What its protocol said when it was looked at last: timers and limits are set by it.
    plan: Arc<ProtocolPlan>,
    timers: Timers,
    reader: Reader,
    /// A message that is decided when nothing of the connection waits for the store any more, and what it has spent.
    held_back: Option<(Frame, Spent)>,
    /// Gives subscriptions what they missed; only while one is behind.
    catching_up: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Task {
    fn new(admitted: Admitted, plan: Arc<ProtocolPlan>, early: Bytes, expires: Option<Instant>) -> Self {
        let mut timers = Timers::default();
        if let Some(at) = expires {
            timers.set(Timer::Expiry, at);
        }
        let reader = Reader::new(early, admitted.connection.outbox.wire(), plan.limits.message);
        let limits = ClientLimits::new(&plan, admitted.live.now());
        timers.begin(&plan, Instant::now());
        Self { admitted, limits, plan, timers, reader, held_back: None, catching_up: None }
    }

    /// Takes over what the configuration says of the protocol now, where that has changed.
    fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        let Some(protocol) = snapshot.runtime.protocol(self.admitted.connection.protocol) else { return };
        if Arc::ptr_eq(&protocol.plan, &self.plan) {
            return;
        }
        let before = std::mem::replace(&mut self.plan, protocol.plan.clone());
        let plan = &self.plan;
        self.limits.update(&before, plan, self.admitted.live.now());
        self.timers.update(&before, plan, Instant::now());
        self.reader.set_message_bytes_max(plan.limits.message);
        self.admitted.connection.update(&plan.limits);
        self.admitted.live.update_batches(snapshot, &self.admitted.connection);
    }

    /// Does all that can be done now. Its wakers are those of the deadline, the outbox, the socket and the log.
    fn poll(&mut self, cx: &mut Context<'_>, mut deadline: Pin<&mut Sleep>) -> Poll<Close> {
        let connection = self.admitted.connection.clone();
        connection.outbox.register(cx.waker());
        let mut reads = 0;
        loop {
            // Deadlines come first, so that a busy client cannot hold them up.
            if let Some(close) = self.deadlines(cx, deadline.as_mut()) {
                return Poll::Ready(connection.outbox.end(close));
            }
            let progress = connection.outbox.poll_write(cx, self.catching_up.is_some());
            if is_over(&progress) {
                return Poll::Ready(connection.outbox.end(Close::Lost));
            }
            if progress.fallen {
                self.admitted.live.hub.fall_behind(&connection);
            }
            if let Some(since) = progress.ends_since
                && !self.timers.is_set(Timer::CloseDue)
            {
                self.timers.set(Timer::CloseDue, since + CLOSE_WITHIN);
                continue;
            }
            match self.poll_read(cx, &progress) {
                Poll::Ready(Read::Some | Read::Enough) if reads < TURN => {
                    reads += 1;
                    continue;
                }
                Poll::Ready(Read::Some | Read::Enough) => {
                    // It may send as fast as it can: others on this thread have their turn all the same.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Read::Last(transition, close)) => {
                    connection.outbox.advance(transition, close);
                    continue;
                }
                Poll::Ready(Read::Ended) => return Poll::Ready(connection.outbox.end(Close::Lost)),
                Poll::Pending => {}
            }
            // Behind the writing, which makes the room that it waits for.
            if !self.poll_catch_up(cx) || !connection.outbox.can_write() {
                // Written with what others still give it in this round.
                self.admitted.live.hub.flush.one(&connection);
                return Poll::Pending;
            }
        }
    }

    /// Handles the deadlines that have passed. It is called again at the next deadline at the latest, and once too early after one
    /// was put off.
    fn deadlines(&mut self, cx: &mut Context<'_>, mut deadline: Pin<&mut Sleep>) -> Option<Close> {
        loop {
            let next = self.timers.next()?;
            if next < deadline.deadline() || deadline.is_elapsed() {
                deadline.as_mut().reset(next);
            }
            if deadline.as_mut().poll(cx).is_pending() {
                return None;
            }
            while let Some(timer) = self.timers.take_due(Instant::now()) {
                if let Some(close) = self.due(timer) {
                    return Some(close);
                }
            }
        }
    }

    /// Reads once, and decides what came with it.
    fn poll_read(&mut self, cx: &mut Context<'_>, progress: &Progress) -> Poll<Read> {
        let connection = &self.admitted.connection;
        let open = progress.lifecycle == Lifecycle::Open;
        // What its messages did before must be seen by the next, and what waits for the store must have an end.
        if open && (self.held_back.is_some() && connection.is_waiting() || !connection.may_go_on()) {
            return Poll::Pending;
        }
        let snapshot = self.admitted.live.snapshot_of(connection.protocol);
        self.follow(&snapshot);
        // What was held back comes first, and then nothing is read.
        let socket = if open && self.held_back.is_some() {
            None
        } else {
            Some(ready!(self.reader.poll_ready(cx, &self.admitted.connection.outbox, progress)))
        };
        let now = self.admitted.live.now();
        let (live, connection) = (&self.admitted.live, &self.admitted.connection);
        let mut batch = Batch::new(&snapshot, Some(connection), now);
        let (limits, held_back) = (&mut self.limits, &mut self.held_back);
        // Gives back what must wait.
        let mut decide = |mut frame: Frame, mut spent: Spent, batch: &mut Batch<'_>| {
            let handled =
                live.client(&snapshot, connection, Arrival { moment: Moment::Message(&mut frame), spent: &mut spent, now }, limits, batch);
            (handled == Handled::Later).then_some((frame, spent))
        };
        let Some(socket) = socket else {
            *held_back = held_back.take().and_then(|(frame, spent)| decide(frame, spent, &mut batch));
            return Poll::Ready(Read::Some);
        };
        let (mut messages, mut bytes, mut pong) = (0, 0, false);
        let mut take = |received| match received {
            Received::Message(frame) if connection.outbox.is_open() => {
                messages += 1;
                bytes += frame.len() as u64;
                connection.metrics.message_in(frame.len() as u64, now.wall_ms);
                *held_back = decide(frame, Spent::default(), &mut batch);
                if held_back.is_none() && connection.may_go_on() { Taken::More } else { Taken::Enough }
            }
            Received::Message(_) | Received::Close(_) => Taken::More,
            Received::Ping(payload) => {
                connection.outbox.pong(&payload, || connection.slow());
                Taken::More
            }
            Received::Pong => {
                pong = true;
                Taken::More
            }
        };
        let read = self.reader.read(&*socket, progress.lifecycle, &mut take);
        drop(batch);
        if messages > 0 {
            self.heard(messages, bytes, now);
        }
        if pong {
            self.pong(now);
        }
        Poll::Ready(read)
    }

    fn heard(&mut self, messages: u64, bytes: u64, now: Now) {
        let traffic = &self.admitted.connection.traffic;
        traffic.messages_in.fetch_add(messages, Relaxed);
        traffic.bytes_in.fetch_add(bytes, Relaxed);
        traffic.seen_ms.store(now.wall_ms, Relaxed);
        if let Some(after) = self.plan.idle.as_ref().map(|idle| idle.after) {
            self.timers.set(Timer::Idle, Instant::now() + after);
            self.timers.clear(Timer::Grace);
        }
    }

    /// Gives subscriptions what they missed, and says whether one is behind.
    fn poll_catch_up(&mut self, cx: &mut Context<'_>) -> bool {
        if self.catching_up.is_none() && self.admitted.connection.is_behind() {
            self.catching_up = Some(Box::pin(catch_up::run(self.admitted.live.clone(), self.admitted.connection.clone())));
        }
        if let Some(running) = &mut self.catching_up
            && running.as_mut().poll(cx).is_ready()
        {
            self.catching_up = None;
        }
        self.catching_up.is_some()
    }

    fn decide(&mut self, moment: Moment<'_>) {
        let now = self.admitted.live.now();
        let snapshot = self.admitted.live.snapshot_of(self.admitted.connection.protocol);
        let mut batch = Batch::new(&snapshot, Some(&self.admitted.connection), now);
        let mut spent = Spent::default();
        // What a timer asks for is not put off: it sees what is committed.
        let arrival = Arrival { moment, spent: &mut spent, now };
        self.admitted.live.client(&snapshot, &self.admitted.connection, arrival, &mut self.limits, &mut batch);
    }

    fn pong(&mut self, now: Now) {
        let traffic = &self.admitted.connection.traffic;
        traffic.awaits_pong.store(false, Relaxed);
        traffic.seen_ms.store(now.wall_ms, Relaxed);
        self.timers.clear(Timer::PongDue);
    }

    /// A deadline has passed. Says how the connection ends, where it ends at once.
    fn due(&mut self, timer: Timer) -> Option<Close> {
        let now = Instant::now();
        let heartbeat = self.plan.heartbeat.as_ref().map(|heartbeat| (heartbeat.every, heartbeat.timeout));
        match timer {
            Timer::Ping => {
                if let Some((every, timeout)) = heartbeat {
                    self.timers.set(Timer::Ping, now + every);
                    if !self.admitted.connection.traffic.awaits_pong.swap(true, Relaxed) {
                        self.timers.set(Timer::PongDue, now + timeout);
                        self.admitted.connection.outbox.ping();
                    }
                }
            }
            // A client that is not read from, because the store has not confirmed what it sent, cannot be heard to answer.
            Timer::PongDue if self.admitted.connection.is_waiting() => {
                if let Some((_, timeout)) = heartbeat {
                    self.timers.set(Timer::PongDue, now + timeout);
                }
            }
            Timer::PongDue => return Some(Close::PingTimeout),
            Timer::Every(row) => {
                if let Some(period) = self.plan.every.iter().find(|(_, every)| every.id == row).map(|(period, _)| *period) {
                    self.timers.set(Timer::Every(row), now + period);
                    self.decide(Moment::Every(row));
                }
            }
            Timer::Idle => {
                self.decide(Moment::Idle);
                if let Some(grace) = self.plan.idle.as_ref().and_then(|idle| idle.grace) {
                    self.timers.set(Timer::Grace, now + grace);
                }
            }
            Timer::Grace => self.admitted.live.end(&self.admitted.connection, Close::Idle),
            Timer::Expiry => self.admitted.live.end(&self.admitted.connection, Close::Expired),
            Timer::CloseDue => return Some(Close::Lost),
        }
        None
    }
}

/// Closes a connection that was never let in. Whether the client stays to hear it is its own affair.
pub async fn refuse(socket: Box<dyn Socket>, early: Bytes, close: Close) {
    let outbox = Outbox::new(Wire::WebSocket { compress: None }, usize::MAX);
    outbox.attach(socket);
    outbox.close(close);
    let mut reader = Reader::new(early, outbox.wire(), 1024);
    let farewell = poll_fn(|cx| {
        loop {
            let progress = outbox.poll_write(cx, true);
            if is_over(&progress) {
                return Poll::Ready(());
            }
            let socket = ready!(reader.poll_ready(cx, &outbox, &progress));
            match reader.read(&*socket, progress.lifecycle, &mut |_| Taken::More) {
                Read::Ended => return Poll::Ready(()),
                Read::Last(transition, close) => outbox.advance(transition, close),
                Read::Some | Read::Enough => {}
            }
        }
    });
    tokio::time::timeout(CLOSE_WITHIN, farewell).await.ok();
}

/// Whether nothing is left to do: the socket is broken, or the other side's close is answered.
fn is_over(progress: &Progress) -> bool {
    match progress.lifecycle {
        Lifecycle::Ended => true,
        Lifecycle::Answering => progress.written,
        Lifecycle::Open | Lifecycle::Closing | Lifecycle::Draining | Lifecycle::HungUp => false,
    }
}
