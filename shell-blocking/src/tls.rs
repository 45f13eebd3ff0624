//! TLS for every outgoing connection: rustls on ring, checked against the system's roots.
//!
//! The roots are read when the first `wss` or `https` connection needs them: a node of a lab without TLS never
//! spends the time and the memory.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use consensus_core::doctor::Certificate;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, RootCertStore};

/// A file of certificates is read up to this size. The system's own bundles have a quarter of a megabyte.
const MAX_CA_FILE: u64 = 4 * 1024 * 1024;

/// TLS settings; cheap to clone, the same for all clones.
#[derive(Debug, Clone, Default)]
pub struct Tls(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Beside the system's.
    roots: Vec<CertificateDer<'static>>,
    config: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Tls {
    /// Trusts the system's roots, and the certificates in `ca` (PEM) where it is given. The file is read and checked
    /// now, the system's roots later.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate; one line that names it.
    pub fn new(ca: Option<&Path>) -> Result<Self, String> {
        let roots = match ca {
            Some(path) => read_roots(path).map_err(|error| format!("{}: {error}", path.display()))?,
            None => Vec::new(),
        };
        Ok(Self(Arc::new(Inner { roots, config: OnceLock::new() })))
    }

    /// What is needed to connect to `host`: a name, or an address without brackets.
    ///
    /// # Errors
    /// One line: the host cannot be in a certificate, or there are no roots.
    pub fn client(&self, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
        // A dot at the end says to a resolver that the name is whole; no certificate has it.
        let name = host.strip_suffix('.').unwrap_or(host);
        let name = ServerName::try_from(name)
            .map_err(|_| format!("{host} is not a name that a certificate can be for"))?
            .to_owned();
        let config = self.0.config.get_or_init(|| build(&self.0.roots)).clone()?;
        Ok((config, name))
    }

    /// When these certificates, which `host` showed and which are valid now, are not any more, in unix seconds, where that
    /// is before `end`.
    #[must_use]
    pub fn runs_out_before(
        &self,
        host: &str,
        certificates: &[CertificateDer<'static>],
        end: Duration,
    ) -> Option<u64> {
        let (own, between) = certificates.split_first()?;
        let (_, name) = self.client(host).ok()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(&self.0.roots));
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build().ok()?;
        let then = UnixTime::since_unix_epoch(end);
        match verifier.verify_server_cert(own, between, &name, &[], then) {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => Some(not_after.as_secs()),
            _ => None,
        }
    }
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_CA_FILE {
        return Err(format!("has {size} bytes; a file of certificates has at most {MAX_CA_FILE}"));
    }
    let pem = fs::read(path).map_err(|error| error.to_string())?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| format!("is not PEM: {error}"))?;
    if found.is_empty() {
        return Err(
            "holds no certificate (a PEM block that begins with -----BEGIN CERTIFICATE-----)".to_owned()
        );
    }
    let mut check = RootCertStore::empty();
    for certificate in &found {
        check
            .add(certificate.clone())
            .map_err(|error| format!("holds a bad certificate: {}", words(&error)))?;
    }
    Ok(found)
}

fn roots(own: &[CertificateDer<'static>]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // What cannot be read is passed over: the others still serve, and a server that needs it is refused by name.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots.add_parsable_certificates(own.iter().cloned());
    roots.roots.shrink_to_fit();
    roots
}

fn build(own: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots(own))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// What went wrong in a TLS handshake or connection, in an operator's words.
#[must_use]
pub fn describe(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(error) => words(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side ended the connection without ending TLS".to_owned()
        }
        None => error.to_string(),
    }
}

/// The kind of problem that a TLS handshake ended with.
#[must_use]
pub fn problem(error: &io::Error) -> Certificate {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => Certificate::NotTls,
        Some(rustls::Error::InvalidCertificate(problem)) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Certificate::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Certificate::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Certificate::WrongName
            }
            CertificateError::UnknownIssuer => Certificate::UnknownIssuer,
            _ => Certificate::Other,
        },
        _ => Certificate::Other,
    }
}

fn words(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(problem) = error else {
        return match error {
            rustls::Error::AlertReceived(alert) => format!("the server refused TLS: {alert:?}"),
            rustls::Error::InvalidMessage(_) => "what the server speaks is not TLS".to_owned(),
            rustls::Error::PeerIncompatible(reason) => {
                format!("the server's TLS is too old or too different: {reason:?}")
            }
            error => error.to_string(),
        };
    };
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired (or this machine's clock is ahead)".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet (or this machine's clock is behind)".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "the server's certificate is by an issuer that this machine does not know \
             (--ca FILE adds one)"
                .to_owned()
        }
        CertificateError::NotValidForName => "the server's certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "the server's certificate is for another name: wanted {}, got {}",
            expected.to_str(),
            if presented.is_empty() { "none".to_owned() } else { presented.join(", ") },
        ),
        CertificateError::Revoked => "the server's certificate is revoked".to_owned(),
        CertificateError::BadSignature => "the server's certificate has a wrong signature".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not for servers".to_owned()
        }
        CertificateError::BadEncoding => "the server's certificate is malformed".to_owned(),
        // The verifier's own error type is not part of rustls' interface. This one is what a self-signed certificate
        // of a lab runs into.
        problem if format!("{problem:?}").contains("CaUsedAsEndEntity") => {
            "the server's certificate is an authority's own; a server needs one with CA:FALSE".to_owned()
        }
        problem => format!("the server's certificate is not accepted: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::thread;

    use rustls::ServerConfig;

    use super::*;

    fn temporary(name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("consensus-tls-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        path
    }

    /// What a client that asks for `host` sees of a server with `params`, if it trusts the server's certificate.
    fn handshake(params: &rcgen::CertificateParams, host: &str, trusted: bool) -> Result<(), String> {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let path = temporary(
            &format!("{host}-{trusted}-{:?}.pem", thread::current().id()),
            certificate.pem().as_bytes(),
        );
        let tls = Tls::new(trusted.then_some(path.as_path())).unwrap();
        fs::remove_file(path).unwrap();

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let connection = rustls::ServerConnection::new(Arc::new(server)).unwrap();
            let _ = rustls::StreamOwned::new(connection, stream).write_all(b"hello");
        });
        let (config, name) = tls.client(host)?;
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let mut connection = rustls::ClientConnection::new(config, name).unwrap();
        let result = loop {
            if !connection.is_handshaking() {
                break Ok(());
            }
            if let Err(error) = connection.complete_io(&mut stream) {
                break Err(describe(&error));
            }
        };
        drop(stream);
        server.join().unwrap();
        result
    }

    fn params(name: &str) -> rcgen::CertificateParams {
        rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap()
    }

    #[test]
    fn a_certificate_in_the_ca_file_is_trusted() {
        assert_eq!(handshake(&params("node.example"), "node.example", true), Ok(()));
        assert_eq!(handshake(&params("node.example"), "node.example.", true), Ok(()));
        assert_eq!(handshake(&params("127.0.0.1"), "127.0.0.1", true), Ok(()));
    }

    #[test]
    fn certificate_problems_are_told_apart() {
        let unknown = handshake(&params("node.example"), "node.example", false).unwrap_err();
        assert!(unknown.contains("issuer") && unknown.contains("--ca"), "{unknown}");
        let name = handshake(&params("node.example"), "other.example", true).unwrap_err();
        assert!(name.contains("wanted other.example"), "{name}");
        let mut authority = params("node.example");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = handshake(&authority, "node.example", true).unwrap_err();
        assert!(authority.contains("CA:FALSE"), "{authority}");
        let mut old = params("node.example");
        old.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let expired = handshake(&old, "node.example", true).unwrap_err();
        assert!(expired.contains("expired"), "{expired}");
        let mut new = params("node.example");
        new.not_before = rcgen::date_time_ymd(3001, 1, 1);
        let early = handshake(&new, "node.example", true).unwrap_err();
        assert!(early.contains("not valid yet"), "{early}");
    }

    #[test]
    fn a_bad_ca_file_is_named() {
        for content in [&b""[..], b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            let path = temporary(&format!("bad-{}", content.len()), content);
            let error = Tls::new(Some(&path)).unwrap_err();
            assert!(error.starts_with(&path.display().to_string()), "{error}");
            fs::remove_file(path).unwrap();
        }
        assert!(
            Tls::new(Some(Path::new("/nonexistent/ca.pem")))
                .unwrap_err()
                .starts_with("/nonexistent/ca.pem: ")
        );
    }

    #[test]
    fn a_host_that_no_certificate_can_be_for_is_refused() {
        let tls = Tls::new(None).unwrap();
        assert!(tls.client("").is_err());
        assert!(tls.client("a b").is_err());
    }
}
