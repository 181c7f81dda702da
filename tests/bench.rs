//! The load generator of `make bench` works: everything small, on what the tests have built, and no figure is looked at.

use std::time::Duration;

use load::cases::{Case, Size};
use load::server::{Kind, Programs};

#[allow(dead_code, clippy::print_stdout, reason = "a program of its own, of which the test uses a part")]
#[path = "../benches/load/mod.rs"]
pub mod load;

#[test]
fn every_case_is_measured_and_nothing_is_lost() {
    let size = Size { divided_by: 50, warm_up: Duration::from_millis(20), measured: Duration::from_millis(60) };
    let programs = Programs { tramline: env!("CARGO_BIN_EXE_tramline").into(), floor: None, pins: None };
    let (cases, kinds) = (Case::all(size, 10_000), [Kind::Floor, Kind::Tramline]);
    let results = load::rounds_of(1, &cases, &kinds, &programs, size).unwrap();
    assert_eq!(results.faults, Vec::<String>::new());

    let table = results.costs(&cases, &kinds);
    let rows: Vec<Vec<&str>> =
        table.lines().take(2 + cases.len()).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
    assert_eq!(rows[0], ["case", "unit", "floor", "Tramline", "÷ floor"]);
    for (case, row) in cases.iter().zip(&rows[2..]) {
        assert_eq!(row.len(), 5, "{row:?}");
        assert_eq!(row[..2], [&case.title, case.unit]);
        for figure in &row[2..4] {
            assert!(figure.trim_end_matches("\\*").parse::<f64>().is_ok(), "{row:?}");
        }
    }
}
