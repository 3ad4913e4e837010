//! The file in which `prepare` hands the devices' credentials on.

use std::path::Path;

use anyhow::{Context, bail};
use culvert_server::files;
use culvert_tunnel::identity::Credential;
use culvert_tunnel::transport::{ClientTransport, Tuning};
use serde::{Deserialize, Serialize};

/// Devices of one gateway.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// The name or address that the gateway's certificate holds.
    pub(crate) server_name: String,
    pub(crate) devices: Vec<DevicePem>,
}

/// What one device keeps of its enrolment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DevicePem {
    /// Leaf first, then the CA.
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Credentials {
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not what load prepare writes", file.display()))
    }

    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec(self)?;
        files::write_private(file, &text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Keys and trust of the first `count` devices, ready to dial.
    ///
    /// # Errors
    /// When there are fewer devices.
    pub(crate) fn transports(&self, count: usize) -> anyhow::Result<Vec<ClientTransport>> {
        if count > self.devices.len() {
            bail!("{count} clients need as many devices, and load prepare made {}", self.devices.len());
        }
        self.devices[..count].iter().map(DevicePem::transport).collect()
    }
}

impl DevicePem {
    fn transport(&self) -> anyhow::Result<ClientTransport> {
        let credential = Credential::from_pem(&self.chain, &self.key)?;
        let chain = credential.chain().to_vec();
        let authority = chain.last().context("an empty chain")?.clone();
        Ok(ClientTransport::session(&[authority], chain, credential.private_key(), Tuning::default())?)
    }
}
