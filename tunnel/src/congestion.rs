//! Which congestion controller runs around the tunnel's datagrams.
//!
//! Inner flows control their own congestion, as they do under WireGuard; a second controller
//! around them hurts. The default therefore lets datagrams through and only bounds what may be in
//! flight, while QUIC keeps its bookkeeping of loss and RTT for status and the control stream.

use std::any::Any;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::TransportConfig;
use quinn_proto::congestion::{BbrConfig, Controller, ControllerFactory, CubicConfig};
use serde::{Deserialize, Serialize};

/// The controllers a configuration may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// No controller of our own: [`Passthrough`].
    #[default]
    None,
    /// CUBIC (RFC 9438).
    Cubic,
    /// BBR, first version.
    Bbr,
}

/// Not the name of a controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown congestion controller {0:?}: choose none, cubic or bbr")]
pub struct UnknownCongestion(String);

impl FromStr for Congestion {
    type Err = UnknownCongestion;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "none" => Ok(Self::None),
            "cubic" => Ok(Self::Cubic),
            "bbr" => Ok(Self::Bbr),
            other => Err(UnknownCongestion(other.into())),
        }
    }
}

impl Congestion {
    pub(crate) fn apply(self, transport: &mut TransportConfig) {
        match self {
            Self::None => transport.congestion_controller_factory(Arc::new(PassthroughConfig)),
            Self::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
            Self::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
        };
    }
}

/// Bytes that may be in flight under [`Passthrough`]: 2.5 Gbit/s over 100 ms.
const WINDOW_BYTES: u64 = 32 << 20;

#[derive(Debug)]
struct PassthroughConfig;

impl ControllerFactory for PassthroughConfig {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(Passthrough)
    }
}

/// Holds nothing back but what exceeds 32 MiB in flight.
#[derive(Clone, Copy, Debug)]
pub struct Passthrough;

impl Controller for Passthrough {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _mtu: u16) {}

    fn window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
