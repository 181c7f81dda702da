//! What tests of a running server stand on: a server of their own, clients for every endpoint, and the shapes of times.
//! Nothing here sleeps: it waits for what is to happen, until a deadline that is generous to a slow machine.

pub mod backend;
pub mod client;
mod embedded;
pub mod http;
pub mod lines;
pub mod postgres;
pub mod raw;
pub mod server;
pub mod shape;
pub mod sse;
pub mod tls;

use std::time::Duration;

pub use backend::Backend;
pub(crate) use backend::on_both;
pub use client::Client;
pub use http::{Answer, KeptAlive, request};
pub use lines::Lines;
pub use postgres::Postgres;
pub use server::{Ended, Server, Setup};
pub use shape::{SOME_TIME, shaped};
pub use sse::Sse;
pub use tls::Authority;

/// How long anything that must happen may take.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits for something that must happen.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"))
}

/// Asks again until the answer is the wanted one, or the time is over; gives the last answer back.
pub async fn until<T, F: Future<Output = T>>(what: &str, mut ask: impl FnMut() -> F, holds: impl Fn(&T) -> bool) -> T {
    soon(what, async {
        loop {
            let answer = ask().await;
            if holds(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}
