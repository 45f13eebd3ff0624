//! The server's half of streams (protocol.md section 9): what it asks for.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde::Serialize;

use crate::wire::base64;

/// What a stream is to lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamTarget {
    /// Each datum is a request.
    ProxySession,
    /// A client of the data plane; each datum is one of its messages.
    DataPlane,
    /// A TCP connection.
    RawTunnel {
        /// A name or an address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// Whoever owns a public tunnel; each datum is a frame of [`mux`](crate::wire::mux).
    TunnelOwner {
        /// The tunnel's name.
        tunnel_id: String,
    },
    /// Somebody who comes through a public tunnel.
    TunnelVisitor {
        /// The tunnel's name.
        tunnel_id: String,
        /// What the visitor has said so far.
        initial_data: Vec<u8>,
    },
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Members<'a> {
    DataPlane,
    RawTunnel {
        host: &'a str,
        port: u16,
    },
    PublicTunnelOwner {
        tunnel_id: &'a str,
    },
    PublicTunnelStream {
        tunnel_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        initial_data: Option<String>,
    },
}

impl StreamTarget {
    /// The `target` of its `stream_open`.
    #[must_use]
    pub fn encode(&self) -> String {
        let members = match self {
            Self::ProxySession => return "proxy-session".to_string(),
            Self::DataPlane => Members::DataPlane,
            Self::RawTunnel { host, port } => Members::RawTunnel { host, port: *port },
            Self::TunnelOwner { tunnel_id } => Members::PublicTunnelOwner { tunnel_id },
            Self::TunnelVisitor { tunnel_id, initial_data } => {
                let initial_data = (!initial_data.is_empty()).then(|| base64::encode(initial_data));
                Members::PublicTunnelStream { tunnel_id, initial_data }
            }
        };
        // Serialising text and numbers cannot fail.
        serde_json::to_string(&members).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stand_on_the_wire_as_the_deployed_server_writes_them() {
        let tunnel_id = || "full-spit".to_string();
        for (target, expected) in [
            (StreamTarget::ProxySession, "proxy-session"),
            (StreamTarget::DataPlane, r#"{"kind":"data-plane"}"#),
            (
                StreamTarget::RawTunnel { host: "a\"b".to_string(), port: 22 },
                r#"{"kind":"raw-tunnel","host":"a\"b","port":22}"#,
            ),
            (
                StreamTarget::TunnelOwner { tunnel_id: tunnel_id() },
                r#"{"kind":"public-tunnel-owner","tunnel_id":"full-spit"}"#,
            ),
            (
                StreamTarget::TunnelVisitor { tunnel_id: tunnel_id(), initial_data: b"hi".to_vec() },
                r#"{"kind":"public-tunnel-stream","tunnel_id":"full-spit","initial_data":"aGk="}"#,
            ),
            (
                StreamTarget::TunnelVisitor { tunnel_id: tunnel_id(), initial_data: Vec::new() },
                r#"{"kind":"public-tunnel-stream","tunnel_id":"full-spit"}"#,
            ),
        ] {
            assert_eq!(target.encode(), expected);
        }
    }
}
