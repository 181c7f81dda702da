//! Tramline beside npm `ws`, `socket.io` and `bun`, under the same load: `make bench`, or
//! `cargo bench --bench load -- [--cases fan*,echo*] [--servers tramline,bun] [--rounds 3] [--quick]`.
//! What is measured and how stands in `load/mod.rs`.

#[allow(dead_code, unused_imports, reason = "its tests are run by tests/bench.rs, and need more than the program does")]
#[allow(clippy::print_stdout, unreachable_pub, reason = "a program for developers")]
#[path = "load/mod.rs"]
mod load;

use clap::Parser;

#[allow(clippy::print_stdout, reason = "a program for developers")]
fn main() -> anyhow::Result<()> {
    let arguments = load::Arguments::parse();
    if !arguments.floor {
        return load::run(&arguments);
    }
    let listener = load::floor::listen()?;
    println!("{}", load::floor::url(&listener)?);
    load::floor::serve(listener)
}
