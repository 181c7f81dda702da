//! The listeners and what each serves: protocols, their HTTP rows and HTTP sources, by path and method.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::plan::{Listen, Plan, SourceKind, TlsPlan};
use crate::model::id::{ProtocolId, SourceId};
use crate::model::pattern::Pattern;
use crate::routing::paths::PathTable;

/// One listener.
#[derive(Debug)]
pub struct Listener {
    /// What it is known by.
    pub key: ListenerKey,
    /// None: plain HTTP.
    pub tls: Option<TlsPlan>,
    /// What is served, by path.
    pub paths: PathTable<Endpoint>,
    /// The protocols that are served.
    pub protocols: Vec<ProtocolId>,
    /// The HTTP sources that are served.
    pub sources: Vec<SourceId>,
    taken: Vec<Taken>,
}

/// What a listener is known by, over reloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    /// Its address.
    pub listen: Listen,
    /// The number among those with this address: there are several only if the system chooses the port.
    pub nth: usize,
}

/// What is served at one path.
#[derive(Debug, Default)]
pub struct Endpoint {
    /// The protocol that is spoken over WebSocket.
    pub websocket: Option<ProtocolId>,
    /// What answers each method.
    pub methods: BTreeMap<Arc<str>, Answers>,
}

/// What answers an HTTP request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// A row of a protocol's `http:`, by its place there.
    Row {
        /// The protocol.
        protocol: ProtocolId,
        /// The row.
        row: usize,
    },
    /// A source.
    Source(SourceId),
}

/// A method and a path; `WS` stands for a WebSocket.
type Taken = (Arc<str>, Pattern);

/// All listeners. Endpoints with the same address share one. With port 0, endpoints with the same path get
/// a listener each, and so do those with and without TLS; elsewhere the configuration refuses that.
pub fn listeners(plan: &Plan) -> Vec<Listener> {
    let mut all: Vec<Listener> = Vec::new();
    for protocol in &plan.protocols {
        let rows = protocol.http.iter().map(|row| (row.method.clone(), row.path.clone()));
        let wanted: Vec<Taken> = std::iter::once(("WS".into(), protocol.path.clone())).chain(rows).collect();
        let listener = find(&mut all, &protocol.listen, protocol.tls.as_ref(), wanted);
        listener.protocols.push(protocol.id);
        listener.paths.entry(&protocol.path).websocket = Some(protocol.id);
        for (row, http) in protocol.http.iter().enumerate() {
            let answers = Answers::Row { protocol: protocol.id, row };
            listener.paths.entry(&http.path).methods.insert(http.method.clone(), answers);
        }
    }
    for source in &plan.sources {
        if let SourceKind::Http { method, path, listen, tls, .. } = &source.kind {
            let listener = find(&mut all, listen, tls.as_ref(), vec![(method.clone(), path.clone())]);
            listener.sources.push(source.id);
            listener.paths.entry(path).methods.insert(method.clone(), Answers::Source(source.id));
        }
    }
    all
}

fn find<'d>(all: &'d mut Vec<Listener>, listen: &Listen, tls: Option<&TlsPlan>, wanted: Vec<Taken>) -> &'d mut Listener {
    let same = |listener: &Listener| listener.key.listen == *listen && listener.tls.as_ref() == tls;
    let shares = |listener: &Listener| same(listener) && (listen.port != 0 || !wanted.iter().any(|one| listener.taken.contains(one)));
    let at = all.iter().position(shares).unwrap_or_else(|| {
        let nth = all.iter().filter(|listener| listener.key.listen == *listen).count();
        let key = ListenerKey { listen: listen.clone(), nth };
        let (protocols, sources) = (Vec::new(), Vec::new());
        all.push(Listener { key, tls: tls.cloned(), paths: PathTable::new(), protocols, sources, taken: Vec::new() });
        all.len() - 1
    });
    all[at].taken.extend(wanted);
    &mut all[at]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::runtime;

    fn served(ports: [u16; 3]) -> Vec<(u16, usize, Vec<String>)> {
        let [a, b, c] = ports;
        let protocol =
            |name: &str, address: String| format!("  {name}: {{ listen: \"{address}\", codec: json, type: /t, messages: {{}} }}\n");
        let yaml = format!(
            "version: 1\nchannels: {{ x: {{}} }}\nprotocols:\n{}{}sources:\n  c: {{ http: POST /x, on: \"localhost:{c}\", to: x }}\n",
            protocol("a", format!("localhost:{a}/ws")),
            protocol("b", format!("localhost:{b}/{}", if a == 0 { "ws" } else { "" })),
        );
        let names = |listener: &Listener| {
            let protocols = listener.protocols.iter().map(|id| id.name().to_string());
            protocols.chain(listener.sources.iter().map(|id| id.name().to_string())).collect()
        };
        listeners(&runtime(&yaml, &[]).plan).iter().map(|one| (one.key.listen.port, one.key.nth, names(one))).collect()
    }

    fn texts<const N: usize>(all: [&str; N]) -> Vec<String> {
        all.map(String::from).to_vec()
    }

    #[test]
    fn what_has_one_address_shares_a_listener() {
        assert_eq!(served([1, 1, 1]), [(1, 0, texts(["a", "b", "c"]))]);
        assert_eq!(served([1, 2, 2]), [(1, 0, texts(["a"])), (2, 0, texts(["b", "c"]))]);
    }

    #[test]
    fn where_the_system_chooses_the_port_nothing_hides_another() {
        assert_eq!(served([0, 0, 0]), [(0, 0, texts(["a", "c"])), (0, 1, texts(["b"]))]);
    }
}
