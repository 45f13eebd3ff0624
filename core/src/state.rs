//! The files of the state directory: their content (protocol.md section 12).

use alloc::string::String;

/// `config.json`: the registration of this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The node's name in the network.
    pub node_id: String,
}
