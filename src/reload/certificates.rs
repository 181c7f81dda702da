//! Certificates that are renewed without a reload: with `reload: false`, or if the reload is refused for another reason. Does not
//! know which certificates are in use, nor how they are replaced.

use tokio::time::sleep;

use super::load::{FAULT_PAUSE, Unusable, on_a_thread};
use crate::config::Inputs;
use crate::config::certificate::{self, InvalidCertificate};
use crate::config::plan::TlsPlan;

/// What is in the files of certificates.
pub(super) struct Looked {
    /// The files.
    pub(super) inputs: Inputs,
    /// Those that have changed.
    pub(super) renewed: Vec<TlsPlan>,
    /// Those that cannot be used.
    pub(super) invalid: Vec<(TlsPlan, InvalidCertificate)>,
}

/// Reads certificates again.
pub(super) async fn look(in_use: Vec<TlsPlan>) -> Result<Looked, Unusable> {
    on_a_thread(move || {
        let mut looked = Looked { inputs: Inputs::default(), renewed: Vec::new(), invalid: Vec::new() };
        for plan in in_use {
            // Before they are read: a change in between is seen later.
            [&plan.cert, &plan.key].into_iter().for_each(|path| looked.inputs.look(path));
            match certificate::read(&plan.cert, &plan.key) {
                Ok(pair) if pair.cert == plan.pair.cert => {}
                Ok(pair) => looked.renewed.push(TlsPlan { pair, ..plan }),
                Err(why) => looked.invalid.push((plan, why)),
            }
        }
        looked
    })
    .await
}

/// Reads them once more after a pause if one is invalid: its second file may not be written yet.
pub(super) async fn look_twice(in_use: Vec<TlsPlan>) -> Result<Looked, Unusable> {
    let looked = look(in_use.clone()).await?;
    if looked.invalid.is_empty() {
        return Ok(looked);
    }
    sleep(FAULT_PAUSE).await;
    look(in_use).await
}
