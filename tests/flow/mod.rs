//! The running binary, from outside: what goes in at one door and what comes out at another.

mod workspace;
