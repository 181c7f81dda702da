//! The running binary, from outside: what goes in at one door and what comes out at another.

mod agent;
mod canvas;
mod canvas_tokens;
mod doors;
mod load;
mod publish;
mod reading;
mod stop;
mod websocket;
mod workspace;
