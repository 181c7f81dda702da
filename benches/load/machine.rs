//! What the system says of processes and of itself: CPU time, memory, CPUs to keep them on. Linux only, as `/proc` is.

use std::fs::read_to_string;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// Which CPU whom is kept on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pins {
    pub server: usize,
    pub load: usize,
}

impl Pins {
    /// Two CPUs this process may use, and itself on the second of them.
    pub fn take() -> Result<Self> {
        let status = read_to_string("/proc/self/status").context("CPUs are known on Linux only")?;
        let allowed = cpus(field(&status, "Cpus_allowed_list:").unwrap_or_default());
        let &[server, load, ..] = &allowed[..] else { anyhow::bail!("there is one CPU only") };
        let own = std::process::id().to_string();
        run(&["taskset", "--cpu-list", "--pid", &load.to_string(), &own]).context("taskset does not work")?;
        Ok(Self { server, load })
    }
}

/// `0-2,5` as numbers.
fn cpus(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// What stands behind a name at the beginning of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// What a program prints, if it succeeds.
pub fn run(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::null()).output().context(words.join(" "))?;
    anyhow::ensure!(output.status.success(), "{}: {}", words.join(" "), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Reads the CPU time of processes.
pub struct CpuClock {
    ticks_per_second: f64,
}

impl CpuClock {
    pub fn new() -> Result<Self> {
        Ok(Self { ticks_per_second: run(&["getconf", "CLK_TCK"])?.parse()? })
    }

    /// What a process has used in all its threads, in user and kernel mode, so far. Exact to a tick, 10 ms on most systems.
    pub fn used(&self, pid: u32) -> Result<Duration> {
        let stat = read_to_string(format!("/proc/{pid}/stat")).context("the process has ended, or this is not Linux")?;
        let ticks = ticks(&stat).with_context(|| format!("in {stat}"))?;
        Ok(Duration::from_secs_f64(ticks as f64 / self.ticks_per_second))
    }
}

/// `utime` and `stime` of proc_pid_stat(5), fields 14 and 15. The name in parentheses, field 2, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// The memory of a process that is resident, in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let status = read_to_string(format!("/proc/{pid}/status")).context("the process has ended, or this is not Linux")?;
    let kib: u64 = field(&status, "VmRSS:").and_then(|value| value.strip_suffix(" kB")).context("no VmRSS")?.parse()?;
    Ok(kib * 1024)
}

/// The machine in a few words.
pub fn describe() -> String {
    let model = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |rest| rest.trim_start_matches([':', ' ', '\t']));
    let cores = std::fs::read_to_string("/proc/self/status").ok();
    let cores = cores.and_then(|status| field(&status, "Cpus_allowed_list:").map(|list| cpus(list).len())).unwrap_or(1);
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} CPUs, Linux {}", kernel.trim())
}

/// How many programs wanted a CPU in the last minute, on the average.
pub fn busy() -> f64 {
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_stands_behind_a_name_that_may_hold_anything() {
        assert_eq!(ticks("7 (a) b (c 1 2) S 1 7 7 0 -1 4194304 100 0 0 0 31 11 0 0 20 0 1"), Some(42));
        assert_eq!(ticks("7 (short) S 1"), None);
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(cpus("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(cpus("3"), [3]);
        assert!(cpus("").is_empty());
    }
}
