//! Which listeners there are, and which protocols and sources each serves.

use std::sync::Arc;

use crate::config::plan::{Listen, Plan, SourceKind, TlsPlan};
use crate::model::pattern::Pattern;

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its address.
    pub listen: Listen,
    /// None: plain HTTP.
    pub tls: Option<TlsPlan>,
    /// Protocols, by their place in the plan.
    pub protocols: Vec<usize>,
    /// HTTP sources, by their place in the plan.
    pub sources: Vec<usize>,
    taken: Vec<Taken>,
}

/// A method and a path; `WS` stands for a WebSocket.
type Taken = (Arc<str>, Pattern);

/// All listeners. What has the same address shares one. Where the system chooses the port, things that want the same path get
/// a listener each, and so do those with and without TLS; elsewhere the configuration refuses that.
pub fn listeners(plan: &Plan) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    for (index, protocol) in plan.protocols.iter().enumerate() {
        let rows = protocol.http.iter().map(|row| (row.method.clone(), row.path.clone()));
        let wanted: Vec<Taken> = std::iter::once(("WS".into(), protocol.path.clone())).chain(rows).collect();
        find(&mut listeners, &protocol.listen, protocol.tls.as_ref(), wanted).protocols.push(index);
    }
    for (index, source) in plan.sources.iter().enumerate() {
        if let SourceKind::Http { method, path, listen, tls, .. } = &source.kind {
            find(&mut listeners, listen, tls.as_ref(), vec![(method.clone(), path.clone())]).sources.push(index);
        }
    }
    listeners
}

fn find<'d>(listeners: &'d mut Vec<Listener>, listen: &Listen, tls: Option<&TlsPlan>, wanted: Vec<Taken>) -> &'d mut Listener {
    let same = |listener: &Listener| listener.listen == *listen && listener.tls.as_ref() == tls;
    let shares = |listener: &Listener| same(listener) && (listen.port != 0 || !wanted.iter().any(|one| listener.taken.contains(one)));
    let at = listeners.iter().position(shares).unwrap_or_else(|| {
        listeners.push(Listener {
            listen: listen.clone(),
            tls: tls.cloned(),
            protocols: Vec::new(),
            sources: Vec::new(),
            taken: Vec::new(),
        });
        listeners.len() - 1
    });
    listeners[at].taken.extend(wanted);
    &mut listeners[at]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::runtime;

    fn served(ports: [u16; 3]) -> Vec<(u16, Vec<usize>, Vec<usize>)> {
        let [a, b, c] = ports;
        let protocol =
            |name: &str, address: String| format!("  {name}: {{ listen: \"{address}\", codec: json, type: /t, messages: {{}} }}\n");
        let yaml = format!(
            "version: 1\nchannels: {{ x: {{}} }}\nprotocols:\n{}{}sources:\n  c: {{ http: POST /x, on: \"localhost:{c}\", to: x }}\n",
            protocol("a", format!("localhost:{a}/ws")),
            protocol("b", format!("localhost:{b}/{}", if a == 0 { "ws" } else { "" })),
        );
        listeners(&runtime(&yaml, &[]).plan)
            .into_iter()
            .map(|listener| (listener.listen.port, listener.protocols, listener.sources))
            .collect()
    }

    #[test]
    fn what_has_one_address_shares_a_listener() {
        assert_eq!(served([1, 1, 1]), [(1, vec![0, 1], vec![0])]);
        assert_eq!(served([1, 2, 2]), [(1, vec![0], vec![]), (2, vec![1], vec![0])]);
    }

    #[test]
    fn where_the_system_chooses_the_port_nothing_hides_another() {
        assert_eq!(served([0, 0, 0]), [(0, vec![0], vec![0]), (0, vec![1], vec![])]);
    }
}
