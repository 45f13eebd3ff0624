//! A certificate authority for one run, and the certificate it gives the server.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use futures_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use futures_rustls::{TlsAcceptor, TlsConnector};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::options::CertDates;

/// A new authority's certificate, as PEM, and a server with a certificate of it: one that is valid, but for `dates`.
///
/// # Errors
/// A name that cannot stand in a certificate.
pub fn authority(names: &[String], dates: Option<CertDates>) -> io::Result<(String, TlsAcceptor)> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "Consensus testbed authority");
    let ca_key = KeyPair::generate().map_err(io::Error::other)?;
    let issuer = CertifiedIssuer::self_signed(ca, ca_key).map_err(io::Error::other)?;

    let names = if names.is_empty() {
        vec![String::from("localhost"), String::from("127.0.0.1")]
    } else {
        names.to_vec()
    };
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut server = CertificateParams::new(names).map_err(io::Error::other)?;
    server.distinguished_name.push(DnType::CommonName, "Consensus testbed");
    match dates {
        None => {}
        Some(CertDates::Expired) => server.not_after = rcgen::date_time_ymd(2001, 1, 1),
        Some(CertDates::Soon) => {
            server.not_after = (SystemTime::now() + Duration::from_secs(7 * 24 * 3600)).into();
        }
        Some(CertDates::Future) => server.not_before = rcgen::date_time_ymd(3001, 1, 1),
    }
    let certificate = server.signed_by(&key, &issuer).map_err(io::Error::other)?;
    let chain = vec![certificate.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(io::Error::other)?;
    Ok((issuer.pem(), TlsAcceptor::from(Arc::new(config))))
}

/// A client that trusts the authority whose certificate is in `file`, and no other.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn connector(file: &Path) -> io::Result<TlsConnector> {
    let certificate = CertificateDer::from_pem_file(file).map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(io::Error::other)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
