//! One client, one task: reads, decides and applies in order, writes what waits, keeps the deadlines, cleans up on every path.
//!
//! Messages of a connection are handled one after the other. A client that does not read is not read from either once its
//! replies fill its outbox: then it ends as its protocol says. Knows no HTTP and no socket: a [`Transport`] carries its frames.

pub mod stream;
pub mod tcp;
#[cfg(test)]
mod tests;
mod timers;
pub mod tls;
pub mod transport;
pub mod websocket;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::catch_up;
use crate::config::plan::ProtocolPlan;
use crate::hub::{Connection, Out};
use crate::model::{Close, Now};
use crate::pipeline::{ClientLimits, Input, must_wait};
use crate::protocol::Frame;
use crate::router::Router;
use timers::{Timer, Timers};
use transport::{Gone, Incoming, Outgoing, Transport};

/// How long the other side may take over what is left to write and its own close frame.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);

/// Runs a connection that the hub has let in, until it has ended, and says how it ended.
///
/// `expires` is when its token runs out. When `stop` fires it closes with 1001.
pub async fn run<T: Transport>(
    router: Arc<Router>,
    connection: Arc<Connection>,
    transport: T,
    expires: Option<Instant>,
    stop: CancellationToken,
) -> Close {
    let plan = router.context.runtime.protocols[connection.protocol].plan.clone();
    // Cleans up even where this future is dropped half-way.
    let guard = Departure { router: &router, connection: &connection, close: Close::Lost };
    let mut task = Task::new(&router, &connection, &plan, transport, expires);
    let close = task.run(&stop).await;
    drop(task);
    guard.done(close)
}

/// Takes a connection out of everything when it goes, whichever way that happens.
struct Departure<'a> {
    router: &'a Arc<Router>,
    connection: &'a Arc<Connection>,
    close: Close,
}

impl Departure<'_> {
    fn done(mut self, close: Close) -> Close {
        self.close = close.clone();
        close
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.close = Close::Internal;
        }
        self.router.closed(self.connection, &self.close, Now::read());
    }
}

struct Task<'a, T> {
    router: &'a Arc<Router>,
    connection: &'a Arc<Connection>,
    plan: &'a ProtocolPlan,
    limits: ClientLimits,
    timers: Timers,
    wire: Wire<T>,
}

/// The transport and how far its end has come.
struct Wire<T> {
    transport: T,
    unflushed: bool,
    phase: Phase,
    /// A message that is decided when nothing of the connection waits for the store any more.
    held_back: Option<Frame>,
}

enum Phase {
    Open,
    /// The close frame is written or on its way; what still comes in is thrown away. `broken`: not even frames can be read any more.
    Closing {
        close: Close,
        broken: bool,
    },
}

/// What one turn of the wheel brought.
enum Turn {
    Frame(Frame),
    /// What was held back may be decided.
    Resumed(Frame),
    Pong,
    /// The other side ended it, or the handshake is complete.
    Ended(Close),
    /// The outbox has been given its end: from here on the clock runs.
    Ending,
}

impl<'a, T: Transport> Task<'a, T> {
    fn new(
        router: &'a Arc<Router>,
        connection: &'a Arc<Connection>,
        plan: &'a ProtocolPlan,
        transport: T,
        expires: Option<Instant>,
    ) -> Self {
        let now = Instant::now();
        let mut timers = Timers::default();
        if let Some(heartbeat) = &plan.heartbeat {
            timers.set(Timer::Ping, now + heartbeat.every);
        }
        if let Some(idle) = &plan.idle {
            timers.set(Timer::Idle, now + idle.after);
        }
        for (index, (period, _)) in plan.every.iter().enumerate() {
            timers.set(Timer::Every(index), now + *period);
        }
        if let Some(at) = expires {
            timers.set(Timer::Expiry, at);
        }
        Self {
            router,
            connection,
            plan,
            limits: ClientLimits::new(plan, Now::read()),
            timers,
            wire: Wire { transport, unflushed: false, phase: Phase::Open, held_back: None },
        }
    }

    /// Inputs: what the transport brings, what the outbox holds, what subscriptions have missed, the next deadline, the stop.
    async fn run(&mut self, stop: &CancellationToken) -> Close {
        self.decide(Input::Open);
        let (router, connection) = (self.router, self.connection);
        let mut catching_up = pin!(catch_up::run(router, connection));
        let mut stopping = false;
        let mut deadline = pin!(sleep_until(Instant::now()));
        loop {
            let next = self.timers.next();
            if let Some(at) = next
                && deadline.deadline() != at
            {
                deadline.as_mut().reset(at);
            }
            let ending_known = self.timers.is_set(Timer::CloseDue);
            tokio::select! {
                // What is rare comes first, so that a busy client cannot hold it up.
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.connection.outbox.close(Close::GoingAway);
                }
                () = &mut deadline, if next.is_some() => {
                    while let Some(timer) = self.timers.take_due(Instant::now()) {
                        if let Some(close) = self.due(timer) {
                            return close;
                        }
                    }
                }
                turn = poll_fn(|cx| self.wire.turn(cx, self.connection, ending_known)) => match turn {
                    Turn::Frame(frame) => {
                        self.frame(frame);
                        // Many small messages come with one read: every so often others on this thread have their turn.
                        tokio::task::coop::consume_budget().await;
                    }
                    Turn::Resumed(frame) => self.decide(Input::Message(frame)),
                    Turn::Pong => self.pong(),
                    Turn::Ended(close) => return close,
                    Turn::Ending => self.timers.set(Timer::CloseDue, Instant::now() + CLOSE_WITHIN),
                },
                // Behind the writing, which makes the room that it waits for.
                never = &mut catching_up => match never {},
            }
        }
    }

    fn decide(&mut self, input: Input<'_>) {
        self.router.client(self.connection, &mut self.limits, input, Now::read());
    }

    fn frame(&mut self, frame: Frame) {
        let traffic = &self.connection.traffic;
        traffic.messages_in.fetch_add(1, Relaxed);
        traffic.bytes_in.fetch_add(frame.len() as u64, Relaxed);
        traffic.seen_ms.store(Now::read().wall_ms, Relaxed);
        if let Some(idle) = &self.plan.idle {
            self.timers.set(Timer::Idle, Instant::now() + idle.after);
            self.timers.clear(Timer::Grace);
        }
        if self.connection.is_waiting() && must_wait(&self.router.context, self.connection, &frame) {
            self.wire.held_back = Some(frame);
        } else {
            self.decide(Input::Message(frame));
        }
    }

    fn pong(&mut self) {
        let traffic = &self.connection.traffic;
        traffic.awaits_pong.store(false, Relaxed);
        traffic.seen_ms.store(Now::read().wall_ms, Relaxed);
        self.timers.clear(Timer::PongDue);
    }

    /// A deadline has passed. Says how the connection ends, where it ends at once.
    fn due(&mut self, timer: Timer) -> Option<Close> {
        let now = Instant::now();
        match timer {
            Timer::Ping => {
                if let Some(heartbeat) = &self.plan.heartbeat {
                    self.timers.set(Timer::Ping, now + heartbeat.every);
                    if !self.connection.traffic.awaits_pong.swap(true, Relaxed) {
                        self.timers.set(Timer::PongDue, now + heartbeat.timeout);
                        self.connection.outbox.ping();
                    }
                }
            }
            // A client that is not read from, because the store has not confirmed what it sent, cannot be heard to answer.
            Timer::PongDue if self.connection.is_waiting() => {
                if let Some(heartbeat) = &self.plan.heartbeat {
                    self.timers.set(Timer::PongDue, now + heartbeat.timeout);
                }
            }
            Timer::PongDue => return Some(Close::PingTimeout),
            Timer::Every(index) => {
                if let Some((period, _)) = self.plan.every.get(index) {
                    self.timers.set(Timer::Every(index), now + *period);
                    self.decide(Input::Every(index));
                }
            }
            Timer::Idle => {
                self.decide(Input::Idle);
                if let Some(grace) = self.plan.idle.as_ref().and_then(|idle| idle.grace) {
                    self.timers.set(Timer::Grace, now + grace);
                }
            }
            Timer::Grace => self.connection.outbox.close(Close::Idle),
            Timer::Expiry => self.connection.outbox.close(Close::Expired),
            Timer::CloseDue => {
                return Some(match &self.wire.phase {
                    Phase::Closing { close, .. } => close.clone(),
                    Phase::Open => self.connection.outbox.take_close().unwrap_or(Close::Lost),
                });
            }
        }
        None
    }
}

impl<T: Transport> Wire<T> {
    /// Writes what waits and reads what came, until something came in or nothing can be done. Both ways move in one poll, so
    /// neither holds up the other.
    fn turn(&mut self, cx: &mut Context<'_>, connection: &Connection, ending_known: bool) -> Poll<Turn> {
        connection.outbox.register(cx.waker());
        if let Err(Gone) = self.write(cx, connection) {
            let close = match &self.phase {
                Phase::Closing { close, .. } => close.clone(),
                Phase::Open => Close::Lost,
            };
            return Poll::Ready(Turn::Ended(close));
        }
        if !ending_known && !connection.outbox.is_open() {
            connection.traffic.closing.store(true, Relaxed);
            return Poll::Ready(Turn::Ending);
        }
        // What its messages did before must be seen by the next, and what waits for the store must have an end.
        if matches!(self.phase, Phase::Open) {
            if self.held_back.is_some() && connection.is_waiting() || !connection.may_go_on() {
                return Poll::Pending;
            }
            if let Some(frame) = self.held_back.take() {
                return Poll::Ready(Turn::Resumed(frame));
            }
        }
        loop {
            if let Phase::Closing { close, broken: true } = &self.phase {
                let close = close.clone();
                return if self.unflushed { Poll::Pending } else { self.transport.poll_drain(cx).map(|()| Turn::Ended(close)) };
            }
            match self.transport.poll_incoming(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(incoming) => match (incoming, &self.phase) {
                    (Incoming::Frame(frame), Phase::Open) if connection.outbox.is_open() => return Poll::Ready(Turn::Frame(frame)),
                    (Incoming::Frame(_), _) => {}
                    (Incoming::Pong, _) => return Poll::Ready(Turn::Pong),
                    (Incoming::Closed(_), Phase::Closing { close, .. }) => return Poll::Ready(Turn::Ended(close.clone())),
                    (Incoming::Closed(close), Phase::Open) => {
                        // The answer to the other side's close frame is on its way with this flush.
                        if self.transport.poll_flush(cx).is_pending() {
                            tracing::trace!(client = %connection.id, "the answer to a close did not fit");
                        }
                        return Poll::Ready(Turn::Ended(close));
                    }
                    (Incoming::Broken(_), Phase::Closing { close, .. }) => {
                        self.phase = Phase::Closing { close: close.clone(), broken: true };
                    }
                    (Incoming::Broken(close), Phase::Open) => {
                        self.phase = Phase::Closing { close: close.clone(), broken: true };
                        connection.outbox.shut();
                        let sent = self.transport.start(Outgoing::Close(close.clone()));
                        self.unflushed = true;
                        if sent.is_err() || self.write(cx, connection).is_err() {
                            return Poll::Ready(Turn::Ended(close));
                        }
                        return Poll::Ready(Turn::Ending);
                    }
                },
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, connection: &Connection) -> Result<(), Gone> {
        while matches!(self.phase, Phase::Open) {
            match self.transport.poll_ready(cx)? {
                Poll::Pending => return Ok(()),
                Poll::Ready(()) => {}
            }
            match connection.outbox.pop() {
                None => break,
                Some(Out::Frame(frame)) => self.transport.start(Outgoing::Frame(frame))?,
                Some(Out::Ping) => self.transport.start(Outgoing::Ping)?,
                Some(Out::Close(close)) => {
                    connection.traffic.closing.store(true, Relaxed);
                    self.transport.start(Outgoing::Close(close.clone()))?;
                    self.phase = Phase::Closing { close, broken: false };
                }
            }
            self.unflushed = true;
        }
        if self.unflushed
            && let Poll::Ready(flushed) = self.transport.poll_flush(cx)
        {
            flushed?;
            self.unflushed = false;
        }
        Ok(())
    }
}

/// Closes a connection that was never let in.
pub async fn refuse<T: Transport>(mut transport: T, close: Close) {
    let farewell = async {
        poll_fn(|cx| transport.poll_ready(cx)).await?;
        transport.start(Outgoing::Close(close))?;
        poll_fn(|cx| transport.poll_flush(cx)).await?;
        while !matches!(poll_fn(|cx| transport.poll_incoming(cx)).await, Incoming::Closed(_) | Incoming::Broken(_)) {}
        Ok::<(), Gone>(())
    };
    // Whether the client stays to hear it is its own affair.
    tokio::time::timeout(CLOSE_WITHIN, farewell).await.ok();
}
