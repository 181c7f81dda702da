//! What was measured as Markdown: a row for each case, what a piece of work costs each server, and Tramline's ratio to each.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cases::{Case, DURABLE, Figures, RATED};
use super::server::Kind;

/// Above this share of a CPU the load generator may have been what was slow.
const BUSY: f64 = 0.95;
/// Behind figures it was busy at.
const MARK: &str = "\\*";

/// Everything measured, by case and server, a figure for each round.
#[derive(Default)]
pub struct Results {
    runs: BTreeMap<(&'static str, usize), Vec<Figures>>,
    pub faults: Vec<String>,
}

impl Results {
    pub fn add(&mut self, case: &Case, kind: Kind, run: anyhow::Result<Figures>) {
        match run {
            Ok(figures) => self.runs.entry((case.name, kind as usize)).or_default().push(figures),
            Err(error) => self.faults.push(format!("{}, {kind}: {error:#}", case.title)),
        }
    }

    /// The median of the rounds, figure by figure.
    fn median(&self, case: &Case, kind: Kind) -> Option<Figures> {
        let runs = self.runs.get(&(case.name, kind as usize))?;
        let of = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
        let time = |figure: fn(&Figures) -> f64| Duration::from_secs_f64(of(figure));
        Some(Figures {
            cost: of(|run| run.cost),
            per_second: of(|run| run.per_second),
            p50: time(|run| run.p50.as_secs_f64()),
            p99: time(|run| run.p99.as_secs_f64()),
            load: of(|run| run.load),
            bare_p99: time(|run| run.bare_p99.as_secs_f64()),
        })
    }

    /// The table of costs and ratios, and what its marks mean.
    pub fn costs(&self, cases: &[Case], kinds: &[Kind]) -> String {
        let others: Vec<Kind> = kinds.iter().copied().filter(|kind| *kind != Kind::Tramline && kinds.contains(&Kind::Tramline)).collect();
        let heads = kinds.iter().map(Kind::to_string).chain(others.iter().map(|kind| format!("÷ {kind}")));
        let mut text = head(["case".to_owned(), "unit".to_owned()].into_iter().chain(heads), 2);
        let mut busy = false;
        for case in cases {
            let cost = |kind: &Kind| self.median(case, *kind).map(|figures| figures.cost);
            let figure = |kind: &Kind| {
                self.median(case, *kind).map(|figures| {
                    busy |= figures.load > BUSY;
                    format!("{}{}", number(figures.cost), if figures.load > BUSY { MARK } else { "" })
                })
            };
            let figures: Vec<Option<String>> = kinds.iter().map(figure).collect();
            let ratio = |kind: &Kind| Some(format!("{:.2}", cost(&Kind::Tramline)? / cost(kind).filter(|cost| *cost > 0.0)?));
            let cells = figures.into_iter().chain(others.iter().map(ratio)).map(|cell| cell.unwrap_or_else(|| "–".to_owned()));
            line(&mut text, [case.title.clone(), case.unit.to_owned()].into_iter().chain(cells));
        }
        if busy {
            let share = BUSY * 100.0;
            text.push_str(&format!(
                "\n{MARK} The load generator was busy for more than {share:.0} % of the time: it, not the server, may have set the pace.\n"
            ));
        }
        text
    }

    /// How much and how fast, which holds for this machine only.
    pub fn speeds(&self, cases: &[Case], kinds: &[Kind]) -> String {
        let mut text = head(["case", "server", "a second", "p50, ms", "p99, ms", "load generator"].map(str::to_owned).into_iter(), 2);
        for (case, kind) in cases.iter().flat_map(|case| kinds.iter().map(move |kind| (case, kind))) {
            if let Some(figures) = self.median(case, *kind) {
                let unless_zero = |value: f64, text: String| if value > 0.0 { text } else { "–".to_owned() };
                let ms = |time: Duration| unless_zero(time.as_secs_f64(), number(time.as_secs_f64() * 1000.0));
                let speed = unless_zero(figures.per_second, format!("{:.0}", figures.per_second));
                let cells = [speed, ms(figures.p50), ms(figures.p99), format!("{:.0} %", figures.load * 100.0)];
                line(&mut text, [case.title.clone(), kind.to_string()].into_iter().chain(cells));
            }
        }
        text
    }
}

impl Results {
    /// What it costs that publications are stored first: how long they take beside a bare loop, and the CPU time beside the same
    /// publications that are not stored.
    pub fn durable(&self, cases: &[Case]) -> Vec<String> {
        let of = |name: &str| self.median(cases.iter().find(|case| case.name == name)?, Kind::Tramline);
        let Some(durable) = of(DURABLE) else { return Vec::new() };
        let ms = |time: Duration| number(time.as_secs_f64() * 1000.0);
        let (p99, bare) = (durable.p99, durable.bare_p99);
        let times = p99.as_secs_f64() / bare.as_secs_f64();
        let mut lines = vec![format!(
            "stored first, p99 {} ms: {} times that of a bare SQLite insert and commit, {} ms",
            ms(p99),
            number(times),
            ms(bare)
        )];
        if let Some(rated) = of(RATED) {
            let (cost, without) = (number(durable.cost), number(rated.cost));
            let times = number(durable.cost / rated.cost);
            lines.push(format!("stored first, {cost} CPU-µs per delivery: {times} times that without a log, {without}"));
        }
        lines
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Three digits.
fn number(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The head of a table whose columns are numbers but for the first.
fn head(cells: impl Iterator<Item = String>, texts: usize) -> String {
    let cells: Vec<String> = cells.collect();
    let mut text = String::new();
    line(&mut text, cells.iter().cloned());
    text.push_str(&format!("|{}{}\n", " --- |".repeat(texts), " ---: |".repeat(cells.len() - texts)));
    text
}

fn line(text: &mut String, cells: impl Iterator<Item = String>) {
    text.push_str(&format!("| {} |\n", cells.collect::<Vec<_>>().join(" | ")));
}

#[cfg(test)]
mod tests {
    use super::super::cases::Load;
    use super::*;

    fn figures(cost: f64, load: f64) -> Figures {
        let (p50, p99, bare_p99) = (Duration::from_millis(2), Duration::from_millis(30), Duration::from_millis(12));
        Figures { cost, load, per_second: 1000.0, p50, p99, bare_p99 }
    }

    #[test]
    fn a_table_has_medians_ratios_and_marks() {
        let case = |name| Case { name, title: format!("the {name}"), unit: "CPU-µs", load: Load::Idle { connections: 1 } };
        let (cases, kinds) = ([case("one"), case("two")], [Kind::Floor, Kind::Tramline, Kind::Ws]);
        let mut results = Results::default();
        for cost in [1.0, 3.0, 2.0] {
            results.add(&cases[0], Kind::Floor, Ok(figures(cost, 0.5)));
        }
        results.add(&cases[0], Kind::Tramline, Ok(figures(3.0, 0.96)));
        results.add(&cases[0], Kind::Ws, Ok(figures(12.0, 0.5)));
        results.add(&cases[1], Kind::Ws, Err(anyhow::anyhow!("3 were lost")));
        let costs = "\
| case | unit | floor | Tramline | ws | ÷ floor | ÷ ws |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
| the one | CPU-µs | 2.00 | 3.00\\* | 12.0 | 1.50 | 0.25 |
| the two | CPU-µs | – | – | – | – | – |

\\* The load generator was busy for more than 95 % of the time: it, not the server, may have set the pace.
";
        assert_eq!(results.costs(&cases, &kinds), costs);
        assert_eq!(results.faults, ["the two, ws: 3 were lost"]);
        assert!(results.speeds(&cases, &kinds).contains("| the one | ws | 1000 | 2.00 | 30.0 | 50 % |\n"));
    }

    #[test]
    fn what_is_stored_first_is_compared_with_a_bare_loop_and_with_what_is_not() {
        let case = |name| Case { name, title: name.to_owned(), unit: "CPU-µs", load: Load::Idle { connections: 1 } };
        let (cases, mut results) = ([case(RATED), case(DURABLE)], Results::default());
        assert!(results.durable(&cases).is_empty());
        results.add(&cases[1], Kind::Tramline, Ok(figures(13.0, 0.5)));
        let p99 = "stored first, p99 30.0 ms: 2.50 times that of a bare SQLite insert and commit, 12.0 ms";
        assert_eq!(results.durable(&cases), [p99]);
        results.add(&cases[0], Kind::Tramline, Ok(figures(10.0, 0.5)));
        assert_eq!(results.durable(&cases), [p99, "stored first, 13.0 CPU-µs per delivery: 1.30 times that without a log, 10.0"]);
    }
}
