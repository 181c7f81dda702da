//! `tramline check`: prints everything that is wrong with a routes file, its plugins and its certificates.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use super::{load, say};
use crate::config::plan::TlsPlan;
use crate::http::certificate::{Expiry, expiry};

pub(super) fn run(path: &Path) -> ExitCode {
    match load(path) {
        Ok(runtime) => {
            let plan = &runtime.plan;
            say(&format!(
                "{} is valid: {}, {}, {}\n",
                path.display(),
                count(plan.protocols.len(), "protocol"),
                count(plan.channels.len(), "channel"),
                count(plan.sources.len(), "source")
            ));
            let certificates: BTreeMap<&Path, &TlsPlan> = plan.tls().map(|tls| (&*tls.cert, tls)).collect();
            for (cert, tls) in certificates {
                let Some(Expiry { is_past, at }) = expiry(tls) else { continue };
                let what = if is_past { "expired" } else { "expires soon" };
                let then = if is_past { "clients refuse it; " } else { "" };
                say(&format!("warning: the certificate in {} {what}, at {at}: {then}put a renewed one in its place\n", cert.display()));
            }
            ExitCode::SUCCESS
        }
        Err(text) => {
            say(&text);
            ExitCode::FAILURE
        }
    }
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
