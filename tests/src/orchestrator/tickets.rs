//! Tickets: what pays for one request of the data plane (protocol.md section 10).

use consensus_core::crypto::Crypto as _;
use consensus_core::crypto::pure::Pure;
use consensus_core::data_plane::ticket::{self, Claims};
use consensus_core::limits::MAX_LOCAL_BODY;
use consensus_core::peer::client::Request;
use consensus_core::wire::message::{BodyEncoding, decode_body};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::http::{Reply, failure, kid};

/// How long a ticket is good for, in seconds.
const LIFETIME: u64 = 60;

/// What `POST /tickets` takes. A body is text unless it says otherwise.
#[derive(Deserialize)]
struct Wanted {
    node_id: Option<String>,
    target_url: String,
    method: Option<String>,
    headers: Option<std::collections::BTreeMap<String, String>>,
    body: Option<String>,
    #[serde(default)]
    body_encoding: BodyEncoding,
}

impl Shared {
    /// The claims of a good ticket.
    pub(super) fn claims(&self, node_id: &str, dedupe_key: String) -> Claims<'static> {
        let now = self.now().unix_seconds();
        Claims {
            iss: ticket::ISSUER.into(),
            aud: node_id.to_owned().into(),
            sub: dedupe_key.into(),
            scope: ticket::SCOPE.into(),
            iat: now,
            exp: now + LIFETIME,
            jti: self.random_hex::<16>().into(),
        }
    }

    pub(super) fn issue(&self, claims: &Claims<'_>) -> String {
        ticket::issue(&Pure, &Pure.signing_key(&self.seed), &kid(self), claims)
    }
}

/// `POST /tickets`.
pub(super) fn mint(shared: &Shared, body: &Value) -> Reply {
    let Wanted { node_id, target_url, method, headers, body, body_encoding } = match Wanted::deserialize(body)
    {
        Ok(wanted) => wanted,
        Err(error) => return failure(400, "invalid_request", &error.to_string()),
    };
    let body = match decode_body(body.map(Into::into), body_encoding, MAX_LOCAL_BODY) {
        Ok(body) => body,
        Err(reason) => return failure(400, "invalid_request", &reason),
    };
    let request = Request { target_url, method, headers: headers.unwrap_or_default(), body };
    let Some(key) = request.dedupe_key(&Pure) else {
        return failure(400, "invalid_request", "target_url is not a URL");
    };
    let state = shared.state();
    let Some(node_id) = node_id.or_else(|| state.attached.keys().next().cloned()) else {
        return failure(503, "no_node", "no node has a control tunnel");
    };
    let Some(public_key_pem) = state.nodes.get(&node_id).map(|node| node.public_key_pem.clone()) else {
        return failure(404, "node_not_found", "no node of that name is registered");
    };
    drop(state);
    let claims = shared.claims(&node_id, key);
    let (scheme, port) = (if shared.tls.is_some() { "wss" } else { "ws" }, shared.address.port());
    (
        200,
        json!({
            "success": true, "token": shared.issue(&claims), "node_id": node_id,
            "node_public_key_pem": public_key_pem, "expires_at": claims.exp,
            "connect_url": format!("{scheme}://{node_id}.node.localhost:{port}/connect"),
        }),
    )
}
