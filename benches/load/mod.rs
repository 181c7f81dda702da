//! A load generator beside its servers. It starts each one alone, keeps it on a CPU of its own, loads it over WebSocket, and tells what a
//! piece of work costs: the server's CPU time by the deliveries that arrived. That figure holds on a noisy machine where rates do not;
//! a ratio of two compares what ran within seconds of each other, because rounds take the servers in turn.
//!
//! Nothing that was lost, twice, out of turn or altered gives a figure: [`traffic`] compares every delivery with what was published.
//! The [`floor`] is the least a server can do on the same machine, so that there is a limit to compare with.
//!
//! | module | knows |
//! | --- | --- |
//! | `cases` | the loads, how one is measured |
//! | `bare` | the loop of SQLite transactions that what is stored is compared with |
//! | `traffic` | who publishes what to whom, and that it arrives |
//! | `clients`, `dialect`, `wire`, `socket` | connections; texts; frames; bytes |
//! | `server`, `floor`, `machine` | what is measured; the least there is; the system |
//! | `histogram`, `report` | figures |

pub mod bare;
pub mod cases;
pub mod clients;
pub mod dialect;
pub mod floor;
pub mod histogram;
pub mod machine;
pub mod report;
pub mod server;
pub mod socket;
pub mod traffic;
pub mod wire;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use cases::{Case, Size};
use machine::{CpuClock, Pins};
use report::Results;
use server::{Kind, Programs};

/// Where the table goes with `UPDATE=1`.
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const BEGIN: &str = "<!-- measured: load -->\n";
const END: &str = "<!-- /measured -->";

/// A machine with more than this to do is told.
const BUSY: f64 = 0.5;

#[derive(clap::Parser)]
pub struct Arguments {
    /// Cases by name, with commas; `fan*` is all that begin so.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Servers by name, with commas.
    #[arg(long, value_delimiter = ',', value_enum)]
    servers: Vec<Kind>,
    /// How often everything is measured; figures are medians.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A tenth of the connections and one short round: whether it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Be the floor instead.
    #[arg(long, hide = true)]
    pub floor: bool,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Measures, prints, and writes the README's table if `UPDATE=1`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let update = std::env::var_os("UPDATE").is_some_and(|value| value == "1");
    let whole = !arguments.quick && arguments.cases.is_empty() && arguments.servers.is_empty();
    ensure!(!update || whole, "UPDATE=1 wants all cases and servers, and not --quick");
    let size = match arguments.quick {
        false => Size { divided_by: 1, warm_up: Duration::from_millis(700), measured: Duration::from_millis(1500) },
        true => Size { divided_by: 10, warm_up: Duration::from_millis(200), measured: Duration::from_millis(300) },
    };
    let files = rlimit::increase_nofile_limit(u64::MAX).context("the limit of open files")?;
    let cases = chosen(Case::all(size, usize::try_from(files).unwrap_or(usize::MAX)), &arguments.cases)?;
    let (machine, busy) = (machine::describe(), machine::busy());
    let pins = Pins::take();
    let programs = Programs {
        tramline: std::env::var_os("TRAMLINE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_tramline").into(), PathBuf::from),
        floor: Some(std::env::current_exe()?),
        pins: pins.as_ref().ok().copied(),
    };
    let (mut kinds, mut versions) = (Vec::new(), Vec::new());
    for kind in Kind::ALL.into_iter().filter(|kind| arguments.servers.is_empty() || arguments.servers.contains(kind)) {
        match programs.version(kind) {
            Ok(version) => {
                kinds.push(kind);
                versions.extend(version);
            }
            Err(error) if kind == Kind::Tramline => return Err(error),
            Err(error) => eprintln!("left out: {kind}: {error:#}"),
        }
    }
    ensure!(!update || kinds == Kind::ALL, "UPDATE=1 wants every server");
    let rounds = if arguments.quick { 1 } else { arguments.rounds };
    let results = rounds_of(rounds, &cases, &kinds, &programs, size)?;

    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let place = match pins {
        Ok(Pins { server, load }) => format!("the server on CPU {server}, the load on CPU {load}"),
        Err(error) => format!("server and load on any CPU ({error:#})"),
    };
    let others = if busy > BUSY { format!("; the machine had other work (load average {busy:.1})") } else { String::new() };
    let head = format!(
        "{}, {machine}: {}; medians of {rounds} round{} of {:.1} s; {place}{others}.\n",
        &date[..10],
        versions.join(", "),
        if rounds == 1 { "" } else { "s" },
        size.measured.as_secs_f64(),
    );
    let table = format!("{head}\n{}", results.costs(&cases, &kinds));
    println!("\n{table}\n{}", results.speeds(&cases, &kinds));
    results.durable(&cases).iter().for_each(|line| println!("{line}"));
    ensure!(results.faults.is_empty(), "not everything could be measured:\n  {}", results.faults.join("\n  "));
    if update { write(&table) } else { Ok(()) }
}

/// Measures every case with every server that suits it, the servers in turn. What fails once is not tried again.
pub fn rounds_of(rounds: u32, cases: &[Case], kinds: &[Kind], programs: &Programs, size: Size) -> Result<Results> {
    let (clock, mut results) = (CpuClock::new()?, Results::default());
    for round in 1..=rounds {
        for case in cases {
            for &kind in kinds.iter().filter(|kind| case.suits(**kind)) {
                let run = programs.start(kind, case.with_log()).and_then(|server| cases::measure(case, kind, &server, size, &clock));
                match &run {
                    Ok(figures) => eprintln!("{round}/{rounds}  {:14} {kind:10} {:8.2} {}", case.name, figures.cost, case.unit),
                    Err(error) => eprintln!("{round}/{rounds}  {:14} {kind:10} {error:#}", case.name),
                }
                results.add(case, kind, run);
            }
        }
    }
    Ok(results)
}

/// The cases that were asked for.
fn chosen(mut cases: Vec<Case>, names: &[String]) -> Result<Vec<Case>> {
    let fits = |case: &Case, name: &str| name.strip_suffix('*').map_or(case.name == name, |begin| case.name.starts_with(begin));
    for name in names {
        let known: Vec<&str> = cases.iter().map(|case| case.name).collect();
        ensure!(cases.iter().any(|case| fits(case, name)), "no case is named {name}; there are {}", known.join(", "));
    }
    cases.retain(|case| names.is_empty() || names.iter().any(|name| fits(case, name)));
    Ok(cases)
}

/// Puts the table into the README.
fn write(table: &str) -> Result<()> {
    let text = std::fs::read_to_string(README)?;
    let Some((before, rest)) = text.split_once(BEGIN) else { bail!("README.md has no {}", BEGIN.trim()) };
    let (_, after) = rest.split_once(END).context("the README's table has no end")?;
    std::fs::write(README, format!("{before}{BEGIN}\n{table}\n{END}{after}"))?;
    Ok(())
}
