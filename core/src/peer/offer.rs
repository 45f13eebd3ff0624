//! The offer to join that an admitted node gets, and the registration that takes it up (protocol.md sections 5 and 7).

use alloc::string::String;
use core::fmt;

use crate::crypto::Crypto;
use crate::time::Now;

/// What an admitted node may answer by registering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Names the join request; good for one registration.
    pub join_id: String,
    /// What the node signs.
    pub nonce: [u8; 32],
    /// Unix seconds.
    pub expires_at: u64,
    /// Who may use it.
    pub public_key: [u8; 32],
}

impl Offer {
    /// Whether `signature` (base64), sent by the node that has `public_key`, takes this offer up in time.
    pub fn verify<C: Crypto>(
        &self,
        crypto: &C,
        public_key: &[u8; 32],
        signature: &str,
        now: Now,
    ) -> Result<(), OfferError> {
        if now.unix_seconds() > self.expires_at {
            return Err(OfferError::Expired);
        }
        if *public_key != self.public_key {
            return Err(OfferError::WrongKey);
        }
        if crate::crypto::identity::verify_base64(crypto, public_key, &self.nonce, signature) {
            Ok(())
        } else {
            Err(OfferError::BadSignature)
        }
    }
}

/// Why an offer cannot be taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferError {
    /// Too late.
    Expired,
    /// It was made to another node.
    WrongKey,
    /// The signature is not over the offer's nonce.
    BadSignature,
}

impl fmt::Display for OfferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the join request has expired; evaluate again",
            Self::WrongKey => "the join request was given to another key",
            Self::BadSignature => "join_signature does not verify",
        })
    }
}

impl core::error::Error for OfferError {}
