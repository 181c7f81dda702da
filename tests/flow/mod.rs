//! The running binary, from outside: what goes in at one endpoint and what comes out at another.

mod workspace;

mod canvas;
mod canvas_tokens;

mod agent;

mod access;
mod websocket;

mod load;
mod publish;
mod reading;
mod recovery;
mod reload;

mod certificates;
mod connections;
mod openapi;
mod sessions;
mod statistics;

mod batching;
mod decide;
mod effects;
mod events;
mod history;
mod isolation;
mod language;
mod limits;
mod moments;
mod scripts;
mod slow_client;
mod sources;
mod subscriptions;

mod stop;
mod tasks;
mod tls;
