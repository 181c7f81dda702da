//! One client, one task: reads, decides and applies in order, writes what waits, keeps the deadlines, cleans up on every path.
//!
//! Messages of a connection are handled one after the other; those that came with one read are one batch. A client that does
//! not read is not read from either once its replies fill its outbox: then it ends as its protocol says. Knows no HTTP.

#[cfg(test)]
mod order_tests;
pub mod stream;
pub mod tcp;
#[cfg(test)]
mod tests;
mod timers;
pub mod tls;
pub mod wire;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::apply::Batch;
use crate::config::plan::ProtocolPlan;
use crate::hub::{Connection, Outbox, Socket};
use crate::live::{Handled, Live, catch_up};
use crate::model::{Close, Now};
use crate::pipeline::{ClientLimits, Moment, Snapshot, Spent};
use crate::protocol::Frame;
use crate::protocol::websocket::Received;
use timers::{Timer, Timers};
use wire::{Read, Taken, Wire};

/// How long the other side may take over what is left to write and its own close frame.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);

/// Later than any deadline that matters. A timer that is set to now instead fires for nothing, and wakes the thread to do so.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads after which other tasks have their turn.
const TURN: usize = 4;

/// Runs a connection that the hub has let in and whose outbox has its socket, until it has ended, and says how it ended.
///
/// `plan` is what it was let in by, `early` what came with the handshake, `expires` when its token runs out; `held` is dropped at the end. Idle connections
/// hold the future, so it has nothing in it twice.
pub fn run(
    live: Arc<Live>,
    plan: Arc<ProtocolPlan>,
    connection: Arc<Connection>,
    early: Bytes,
    expires: Option<Instant>,
    held: impl Send,
) -> impl Future<Output = Close> + Send {
    let mut task = Task::new(live, plan, connection, early, expires);
    async move {
        let _held = &held;
        let mut deadline = pin!(sleep_until(Instant::now() + FAR));
        task.decide(Moment::Open);
        poll_fn(|cx| task.poll(cx, deadline.as_mut())).await
    }
}

struct Task {
    live: Arc<Live>,
    connection: Arc<Connection>,
    limits: ClientLimits,
    /// What its protocol said when it was looked at last: timers and limits are set by it.
    plan: Arc<ProtocolPlan>,
    timers: Timers,
    wire: Wire,
    /// A message that is decided when nothing of the connection waits for the store any more, and what it has spent.
    held_back: Option<(Frame, Spent)>,
    /// Gives subscriptions what they missed; only while one is behind.
    catching_up: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// How it ended, once it has.
    ended: Option<Close>,
}

impl Drop for Task {
    /// Takes the connection out of everything, whichever way it goes.
    fn drop(&mut self) {
        let close = if std::thread::panicking() { Close::Internal } else { self.ended.take().unwrap_or(Close::Lost) };
        self.live.closed(&self.connection, &close, Now::read());
    }
}

impl Task {
    fn new(live: Arc<Live>, plan: Arc<ProtocolPlan>, connection: Arc<Connection>, early: Bytes, expires: Option<Instant>) -> Self {
        let mut timers = Timers::default();
        if let Some(at) = expires {
            timers.set(Timer::Expiry, at);
        }
        let wire = Wire::new(early, plan.limits.message, connection.compress.is_some());
        let limits = ClientLimits::new(&plan, Now::read());
        timers.begin(&plan, Instant::now());
        Self { live, connection, limits, plan, timers, wire, held_back: None, catching_up: None, ended: None }
    }

    /// Takes over what the configuration says of the protocol now, where that has changed.
    fn follow(&mut self, snapshot: &Snapshot, now: Now) {
        let Some(protocol) = snapshot.runtime.protocol(self.connection.protocol) else { return };
        if Arc::ptr_eq(&protocol.plan, &self.plan) {
            return;
        }
        let before = std::mem::replace(&mut self.plan, protocol.plan.clone());
        let plan = &self.plan;
        self.limits.update(&before, plan, now);
        self.timers.update(&before, plan, Instant::now());
        self.wire.set_message_bytes_max(plan.limits.message);
        self.connection.update(&plan.limits);
    }

    /// Does all that can be done now. Its wakers are those of the deadline, the outbox, the socket and the log.
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Pin<&mut Sleep>) -> Poll<Close> {
        let ended = std::task::ready!(self.go_on(cx, deadline));
        self.ended = Some(ended.clone());
        Poll::Ready(ended)
    }

    fn go_on(&mut self, cx: &mut Context<'_>, mut deadline: Pin<&mut Sleep>) -> Poll<Close> {
        let connection = self.connection.clone();
        connection.outbox.register(cx.waker());
        let mut reads = 0;
        loop {
            // Deadlines come first, so that a busy client cannot hold them up.
            if let Some(close) = self.deadlines(cx, deadline.as_mut()) {
                return Poll::Ready(close);
            }
            let progress = connection.outbox.poll_write(cx, self.catching_up.is_some());
            let answered = self.wire.is_asked() && !progress.open && progress.written;
            if progress.shut || answered {
                return Poll::Ready(self.end(self.wire.closing().cloned().unwrap_or(Close::Lost)));
            }
            if progress.fallen {
                self.live.hub.fall_behind(&connection);
            }
            if !progress.open && !self.timers.is_set(Timer::CloseDue) {
                connection.traffic.closing.store(true, Relaxed);
                self.wire.close(connection.outbox.end().unwrap_or(Close::Lost));
                self.timers.set(Timer::CloseDue, Instant::now() + CLOSE_WITHIN);
                continue;
            }
            match self.poll_read(cx, progress.written) {
                Poll::Ready(Read::Some | Read::Enough) if reads < TURN => {
                    reads += 1;
                    continue;
                }
                Poll::Ready(Read::Some | Read::Enough) => {
                    // It may send as fast as it can: others on this thread have their turn all the same.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Read::Last(close)) => {
                    connection.outbox.close(close);
                    continue;
                }
                Poll::Ready(Read::Ended(close)) => return Poll::Ready(self.end(close)),
                Poll::Pending => {}
            }
            // Behind the writing, which makes the room that it waits for.
            if !self.poll_catch_up(cx) || !connection.outbox.can_write() {
                // Written with what others still give it in this round.
                self.live.hub.flush.one(&connection);
                return Poll::Pending;
            }
        }
    }

    /// The other side hears the end at once, whoever still holds the connection.
    fn end(&self, close: Close) -> Close {
        if let Some(socket) = self.connection.outbox.socket() {
            socket.close();
        }
        close
    }

    /// What has passed. The next look is no later than the next deadline: one that was put off is looked at too early, once.
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
    fn poll_read(&mut self, cx: &mut Context<'_>, written: bool) -> Poll<Read> {
        let connection = &self.connection;
        let open = self.wire.closing().is_none();
        // What its messages did before must be seen by the next, and what waits for the store must have an end.
        if open && (self.held_back.is_some() && connection.is_waiting() || !connection.may_go_on()) {
            return Poll::Pending;
        }
        let now = Now::read();
        let snapshot = self.live.snapshot_of(connection.protocol);
        self.follow(&snapshot, now);
        let (live, connection) = (&self.live, &self.connection);
        let mut batch = Batch::new(&snapshot, Some(connection), now);
        let (limits, held_back) = (&mut self.limits, &mut self.held_back);
        // Gives back what must wait.
        let mut decide = |frame: Frame, mut spent: Spent, batch: &mut Batch<'_>| {
            let handled = live.client(&snapshot, connection, Moment::Message(&frame), limits, &mut spent, batch, now);
            (handled == Handled::Later).then_some((frame, spent))
        };
        if open && let Some((frame, spent)) = held_back.take() {
            *held_back = decide(frame, spent, &mut batch);
            return Poll::Ready(Read::Some);
        }
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
        let read = self.wire.poll_read(cx, &connection.outbox, written, &mut take);
        drop(batch);
        if messages > 0 {
            self.heard(messages, bytes, now);
        }
        if pong {
            self.pong(now);
        }
        read
    }

    fn heard(&mut self, messages: u64, bytes: u64, now: Now) {
        let traffic = &self.connection.traffic;
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
        if self.catching_up.is_none() && self.connection.is_behind() {
            self.catching_up = Some(Box::pin(catch_up::run(self.live.clone(), self.connection.clone())));
        }
        if let Some(running) = &mut self.catching_up
            && running.as_mut().poll(cx).is_ready()
        {
            self.catching_up = None;
        }
        self.catching_up.is_some()
    }

    fn decide(&mut self, moment: Moment<'_>) {
        let now = Now::read();
        let snapshot = self.live.snapshot_of(self.connection.protocol);
        let mut batch = Batch::new(&snapshot, Some(&self.connection), now);
        let mut spent = Spent::default();
        // What a timer asks for is not put off: it sees what is committed.
        self.live.client(&snapshot, &self.connection, moment, &mut self.limits, &mut spent, &mut batch, now);
    }

    fn pong(&mut self, now: Now) {
        let traffic = &self.connection.traffic;
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
                    if !self.connection.traffic.awaits_pong.swap(true, Relaxed) {
                        self.timers.set(Timer::PongDue, now + timeout);
                        self.connection.outbox.ping();
                    }
                }
            }
            // A client that is not read from, because the store has not confirmed what it sent, cannot be heard to answer.
            Timer::PongDue if self.connection.is_waiting() => {
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
            Timer::Grace => self.live.end(&self.connection, Close::Idle),
            Timer::Expiry => self.live.end(&self.connection, Close::Expired),
            Timer::CloseDue => return Some(self.wire.closing().cloned().unwrap_or(Close::Lost)),
        }
        None
    }
}

/// Closes a connection that was never let in. Whether the client stays to hear it is its own affair.
pub async fn refuse(socket: Box<dyn Socket>, early: Bytes, close: Close) {
    let outbox = Outbox::new(usize::MAX);
    outbox.attach(socket);
    outbox.close(close.clone());
    let mut wire = Wire::new(early, 1024, false);
    wire.close(close);
    let farewell = poll_fn(|cx| {
        loop {
            let progress = outbox.poll_write(cx, true);
            if progress.shut {
                return Poll::Ready(());
            }
            match wire.poll_read(cx, &outbox, progress.written, &mut |_| Taken::More) {
                Poll::Ready(Read::Ended(_)) => return Poll::Ready(()),
                Poll::Ready(Read::Last(_)) if wire.is_asked() => return Poll::Ready(()),
                Poll::Ready(Read::Some | Read::Enough | Read::Last(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    tokio::time::timeout(CLOSE_WITHIN, farewell).await.ok();
}
