//! The network's HTTP interface (protocol.md sections 7 and 8).

use std::net::Ipv4Addr;
use std::sync::Arc;

use async_h1::server::{ConnectionStatus, Server};
use consensus_core::crypto::pem;
use consensus_core::crypto::pure::Pure;
use consensus_core::limits::{MAX_LOCAL_BODY, PROXY_TIMEOUT};
use consensus_core::peer::integrity::{self, Doubt};
use consensus_core::release::manifest::Manifest;
use consensus_core::state::Jwk;
use consensus_core::wire::hex;
use consensus_core::wire::message::{BodyEncoding, ProxyRequest};
use http_types::headers::HeaderValue;
use http_types::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use smol::future;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::state::{EmailCheck, NodeRecord};
use super::{Record, Shared, tickets, updates};
use crate::conn::Conn;

/// How long a verification code holds, in seconds.
const CODE_LIFETIME: u64 = 600;

/// An answer: status and JSON.
pub(super) type Reply = (u16, Value);

pub(super) fn failure(status: u16, error: &str, message: &str) -> Reply {
    (status, json!({ "success": false, "error": error, "message": message }))
}

/// Answers one request; `false` when the connection is to end.
pub(super) async fn serve_one(shared: &Arc<Shared>, conn: Conn) -> bool {
    let endpoint = |request: Request| async move { Ok(answer(shared, request).await) };
    let mut server = Server::new(conn.clone(), endpoint);
    match server.accept_one().await {
        Ok(ConnectionStatus::KeepAlive) => true,
        Ok(ConnectionStatus::Close) => {
            close(conn).await;
            false
        }
        Err(_) => {
            refuse(conn).await;
            false
        }
    }
}

/// Says 400 to something that is no request, and ends the connection.
pub(super) async fn refuse(mut conn: Conn) {
    let _ =
        conn.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    close(conn).await;
}

async fn close(mut conn: Conn) {
    let _ = conn.flush().await;
    let _ = conn.close().await;
}

async fn answer(shared: &Arc<Shared>, mut request: Request) -> Response {
    let method = request.method();
    let path = request.url().path().to_owned();
    if let (Method::Get, Some(name)) = (method, path.strip_prefix(updates::FOLDER)) {
        return artifact(shared, name, &path);
    }
    let mut body = Vec::new();
    let limit = u64::try_from(2 * MAX_LOCAL_BODY).unwrap_or(u64::MAX);
    let complete = request.take_body().into_reader().take(limit).read_to_end(&mut body).await.is_ok();
    let (status, value) = if complete {
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let key = request.header("x-admin-key").map(|values| values.last().as_str());
        route(shared, method, &path, &body, key).await
    } else {
        failure(400, "bad_request", "the body is not complete")
    };
    if shared.journal.keeps_traffic() {
        shared.journal.add(Record::Http { method: method.to_string(), path, status });
    }
    let mut response = Response::new(StatusCode::try_from(status).unwrap_or(StatusCode::InternalServerError));
    response.set_body(value.to_string());
    if let Ok(value) = HeaderValue::from_bytes(b"application/json".to_vec()) {
        response.insert_header("content-type", value);
    }
    response
}

fn artifact(shared: &Shared, name: &str, path: &str) -> Response {
    let bytes = shared.state().artifacts.get(name).cloned();
    let status = if bytes.is_some() { StatusCode::Ok } else { StatusCode::NotFound };
    let (method, path) = (Method::Get.to_string(), path.to_owned());
    if shared.journal.keeps_traffic() {
        shared.journal.add(Record::Http { method, path, status: status.into() });
    }
    let mut response = Response::new(status);
    response.set_body(bytes.map_or_else(Vec::new, |bytes| bytes.to_vec()));
    response
}

async fn route(shared: &Arc<Shared>, method: Method, path: &str, body: &Value, admin: Option<&str>) -> Reply {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match (method, &segments[..]) {
        (Method::Get, ["health"]) => (200, json!({ "status": "healthy" })),
        (Method::Get, ["config"]) => (200, json!({ "free_mode": !shared.options.require_payment })),
        (Method::Get, ["orchestrator", "pubkey"]) => (200, json!({ "keys": [jwk(shared)] })),
        (Method::Post, ["node", "email", "start"]) => email_start(shared, body),
        (Method::Post, ["node", "email", "verify"]) => email_verify(shared, body),
        (Method::Get, ["node", "region", ipv4]) => region(ipv4),
        (Method::Post, ["node", "join"]) => join(shared, body),
        (Method::Get, ["node", "status", node_id]) => status(shared, node_id),
        (Method::Post, ["node", "verify-integrity", node_id]) => verify_integrity(shared, node_id, body),
        (Method::Get, ["update", "latest"]) => latest(shared),
        (Method::Post, ["admin", "manifest"]) => set_manifest(shared, body, admin),
        (Method::Post, ["admin", "update", step, node_id]) => {
            updates::direct(shared, step, node_id, body, admin)
        }
        (Method::Post, ["tickets"]) => tickets::mint(shared, body),
        (Method::Post, ["node", "tunnel", "proxy", node_id]) => proxy(shared, node_id, body).await,
        (_, ["node", "tunnel"]) => failure(426, "upgrade_required", "this is a WebSocket"),
        _ => failure(404, "not_found", "no such path"),
    }
}

/// The server's signing key.
pub(super) fn jwk(shared: &Shared) -> Value {
    Jwk::of_key(*shared.identity.public_key(), &kid(shared)).to_value()
}

/// The name of that key.
pub(super) fn kid(shared: &Shared) -> String {
    hex::encode(&shared.identity.public_key()[..8])
}

fn text<'a>(body: &'a Value, name: &str) -> Result<&'a str, Reply> {
    body.get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| failure(400, "invalid_request", &format!("{name} is missing")))
}

fn email_start(shared: &Shared, body: &Value) -> Reply {
    let email = match text(body, "email") {
        Ok(email) if email.split_once('@').is_some_and(|(l, d)| !l.is_empty() && d.contains('.')) => email,
        Ok(_) => return failure(400, "invalid_email", "email is not an address"),
        Err(reply) => return reply,
    };
    let number = u32::from_str_radix(&shared.random_hex::<4>(), 16).unwrap_or_default() % 1_000_000;
    let code = format!("{number:06}");
    let id = shared.random_hex::<16>();
    let expires_at = shared.now().unix_seconds() + CODE_LIFETIME;
    shared.journal.add(Record::EmailCode { email: email.to_owned(), code: code.clone() });
    let check = EmailCheck { email: email.to_owned(), code: code.clone(), expires_at };
    shared.state().emails.insert(id.clone(), check);
    let mut reply = json!({ "success": true, "verification_id": id, "expires_at": expires_at });
    if !shared.options.no_dev_code {
        reply["dev_code"] = Value::from(code);
    }
    (200, reply)
}

fn email_verify(shared: &Shared, body: &Value) -> Reply {
    let (email, id, code) = match (text(body, "email"), text(body, "verification_id"), text(body, "code")) {
        (Ok(email), Ok(id), Ok(code)) => (email, id, code),
        (Err(reply), _, _) | (_, Err(reply), _) | (_, _, Err(reply)) => return reply,
    };
    let now = shared.now().unix_seconds();
    let token = shared.random_hex::<24>();
    let mut state = shared.state();
    match state.emails.get(id) {
        Some(check) if check.email != email || check.code != code => {
            failure(401, "invalid_code", "the code is not the one that was sent")
        }
        Some(check) if check.expires_at >= now => {
            state.emails.remove(id);
            state.tokens.insert(token.clone(), email.to_owned());
            let expires_at = now + CODE_LIFETIME;
            (
                200,
                json!({ "success": true, "email": email, "email_verification_token": token,
                    "expires_at": expires_at }),
            )
        }
        _ => failure(404, "verification_not_found", "start the verification again"),
    }
}

fn region(ipv4: &str) -> Reply {
    match ipv4.parse::<Ipv4Addr>() {
        Ok(_) => (
            200,
            json!({ "success": true, "region": "local-1", "city": "Localhost", "country_code": "ZZ",
                "latitude": 0.0, "longitude": 0.0 }),
        ),
        Err(_) => failure(400, "invalid_ipv4", "not an IPv4 address"),
    }
}

fn join(shared: &Shared, body: &Value) -> Reply {
    if shared.options.require_payment {
        return (402, payment_challenge());
    }
    match try_join(shared, body) {
        Ok(reply) | Err(reply) => reply,
    }
}

fn try_join(shared: &Shared, body: &Value) -> Result<Reply, Reply> {
    let pem_text = text(body, "pubkey_ed25519_pem")?;
    let key = pem::decode_public(pem_text)
        .map_err(|e| failure(400, "invalid_request", &format!("pubkey_ed25519_pem: {e}")))?;
    let ipv4 = text(body, "ipv4")?;
    ipv4.parse::<Ipv4Addr>().map_err(|_| failure(400, "invalid_request", "ipv4 is not an address"))?;
    let port = body["port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let port = port.ok_or_else(|| failure(400, "invalid_request", "port is not 1…65535"))?;
    for name in ["contact", "evm_address", "solana_address", "icp_address"] {
        text(body, name)?;
    }
    if !body["capabilities"].is_object() {
        return Err(failure(400, "invalid_request", "capabilities is not an object"));
    }
    let token = text(body, "email_verification_token")?;
    let (join_id, signature) = (text(body, "join_id")?, text(body, "join_signature")?);
    let now = shared.now();
    let node_id = shared.random_hex::<6>();
    let mut state = shared.state();
    let contact = state
        .tokens
        .get(token)
        .cloned()
        .ok_or_else(|| failure(401, "email_not_verified", "email_verification_token is not known"))?;
    let offer = state
        .offers
        .get(join_id)
        .ok_or_else(|| failure(404, "join_not_found", "join_id is not known, or was used"))?;
    offer
        .verify(&Pure, &key, signature, now)
        .map_err(|error| failure(403, "join_refused", &error.to_string()))?;
    // Used up, both: a second node has to be evaluated and verified on its own.
    state.offers.remove(join_id);
    state.tokens.remove(token);
    let ipv6 = body["ipv6"].as_str().map(String::from);
    let record = NodeRecord {
        public_key_pem: pem_text.to_owned(),
        ipv4: ipv4.to_owned(),
        ipv6: ipv6.clone(),
        port,
        contact,
        registered_at: now.unix_seconds(),
    };
    state.nodes.insert(node_id.clone(), record);
    drop(state);
    shared.save();
    shared.journal.add(Record::Joined { node_id: node_id.clone() });
    let domain = format!("{node_id}.node.localhost");
    Ok((
        200,
        json!({
            "success": true, "node_id": node_id, "domain": domain,
            "connect_url": format!("wss://{domain}/connect"),
            "ipv4": ipv4, "ipv6": ipv6, "port": port, "region": "local-1", "status": "active",
            "benchmark_score": 100, "orchestrator_pubkey": jwk(shared),
        }),
    ))
}

/// What x402 says of a resource that costs something.
fn payment_challenge() -> Value {
    json!({
        "x402Version": 1,
        "error": "payment_required",
        "message": "Joining this network costs 1.00 USDC",
        "accepts": [{
            "scheme": "exact", "network": "base", "maxAmountRequired": "1000000",
            "resource": "/node/join", "description": "Node registration", "mimeType": "application/json",
            "payTo": "0x0000000000000000000000000000000000000001",
            "asset": "0x0000000000000000000000000000000000000002", "maxTimeoutSeconds": 300,
        }],
    })
}

fn status(shared: &Shared, node_id: &str) -> Reply {
    let state = shared.state();
    match state.nodes.get(node_id) {
        Some(node) => {
            let status = if state.attached.contains_key(node_id) { "online" } else { "offline" };
            (
                200,
                json!({ "success": true, "node_id": node_id, "status": status, "ipv4": node.ipv4,
                    "port": node.port, "registered_at": node.registered_at }),
            )
        }
        None => failure(404, "node_not_found", "no node of that name is registered"),
    }
}

fn verify_integrity(shared: &Shared, node_id: &str, body: &Value) -> Reply {
    let state = shared.state();
    let key = state.nodes.get(node_id).and_then(|node| pem::decode_public(&node.public_key_pem).ok());
    let Some(key) = key else {
        return failure(404, "node_not_found", "no node of that name is registered");
    };
    match integrity::verify(&Pure, body, &key, state.required.as_ref(), shared.now()) {
        Ok(manifest) => {
            (200, json!({ "success": true, "verified": true, "node_id": node_id, "manifest": manifest }))
        }
        Err(doubt) => {
            let mut reply = json!({ "success": true, "verified": false, "node_id": node_id,
                "error": "integrity_not_verified", "message": doubt.to_string() });
            if let (Doubt::Differs(differences), Some(required)) = (&doubt, &state.required) {
                reply["required"] = json!(required);
                reply["observed"] = body["manifest"].clone();
                reply["differences"] = json!(differences);
            }
            (200, reply)
        }
    }
}

fn latest(shared: &Shared) -> Reply {
    match &shared.state().required {
        Some(manifest) => (200, json!(manifest)),
        None => failure(404, "no_release", "no release is required"),
    }
}

fn set_manifest(shared: &Shared, body: &Value, admin: Option<&str>) -> Reply {
    if admin != Some(shared.options.admin_key.as_str()) {
        return failure(401, "unauthorized", "x-admin-key is not right");
    }
    let required = body["required"].as_bool().unwrap_or(true);
    match serde_json::from_value::<Manifest>(body["manifest"].clone()) {
        Ok(manifest) => {
            shared.state().required = required.then_some(manifest);
            shared.save();
            (200, json!({ "success": true, "required": required }))
        }
        Err(error) => failure(400, "invalid_manifest", &error.to_string()),
    }
}

async fn proxy(shared: &Shared, node_id: &str, body: &Value) -> Reply {
    let mut body = body.clone();
    body["id"] = Value::from(shared.random_hex::<16>());
    if body["body_encoding"].is_null() {
        body["body_encoding"] = json!(BodyEncoding::Utf8);
    }
    let request: ProxyRequest = match serde_json::from_value(body) {
        Ok(request) => request,
        Err(error) => return failure(400, "invalid_request", &error.to_string()),
    };
    let Some(fetched) = shared.fetch(node_id, request) else {
        return failure(502, "node_offline", "the node has no control tunnel");
    };
    // A bad server may never look at what it is told to send.
    let answer = future::or(async { fetched.recv().await.ok() }, async {
        smol::Timer::after(PROXY_TIMEOUT * 2).await;
        None
    });
    match answer.await {
        Some(Ok(response)) => (
            200,
            json!({ "success": true, "status": response.status, "status_text": response.status_text,
                "headers": response.headers, "body": response.body, "body_encoding": response.body_encoding }),
        ),
        Some(Err(failed)) => {
            use consensus_core::peer::orchestrator::ProxyFailure;
            match &failed {
                ProxyFailure::TimedOut => failure(504, "node_timeout", &failed.to_string()),
                ProxyFailure::Refused { code, message } => failure(502, code, message),
                ProxyFailure::NotSent => failure(503, "not_sent", &failed.to_string()),
            }
        }
        None => failure(502, "node_disconnected", "the tunnel ended before the answer"),
    }
}
