//! The network of a model, whatever its kind.

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{ConfigError, Dit, DitConfig, Student, StudentConfig};
use crate::layers::Init;

/// Everything that determines a [`Net`] but its weights.
///
/// As JSON, the fields of [`DitConfig`] with those of a student under `student`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetConfig {
    /// The transformer.
    #[serde(flatten)]
    pub dit: DitConfig,
    /// Its steps, if it is a few-step student.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<StudentConfig>,
}

impl From<DitConfig> for NetConfig {
    fn from(dit: DitConfig) -> Self {
        Self { dit, student: None }
    }
}

impl From<&Student> for NetConfig {
    fn from(net: &Student) -> Self {
        Self { dit: net.trunk().config().clone(), student: Some(net.config().clone()) }
    }
}

/// By hand, because serde's `flatten` would pass over unknown fields.
impl<'de> Deserialize<'de> for NetConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let student = fields.remove("student").unwrap_or(Value::Null);
        Ok(Self {
            dit: serde_json::from_value(Value::Object(fields)).map_err(D::Error::custom)?,
            student: serde_json::from_value(student).map_err(D::Error::custom)?,
        })
    }
}

impl NetConfig {
    /// Whether there can be such a network.
    ///
    /// # Errors
    /// See [`DitConfig::check`] and [`StudentConfig::check`].
    pub fn check(&self) -> Result<(), ConfigError> {
        self.dit.check()?;
        self.student.as_ref().map_or(Ok(()), |student| student.check(&self.dit))
    }

    /// Number of parameters of the network, see [`Dit::parameters`].
    pub fn parameters(&self) -> usize {
        let heads = self.student.as_ref().map_or(0, |student| student.head_parameters(&self.dit));
        self.dit.parameters() + heads
    }

    /// Makes the network with the fresh weights of a seed.
    ///
    /// # Panics
    /// If [`NetConfig::check`] finds a fault.
    pub fn init(&self, seed: u64, device: &Device) -> Net {
        if let Err(fault) = self.check() {
            panic!("{fault}");
        }
        let init = &Init::new(seed, device);
        let trunk = self.dit.init_from(init);
        match &self.student {
            None => Net::Dit(trunk),
            Some(student) => Net::Student(student.init_from(trunk, init)),
        }
    }
}

/// A diffusion transformer, or a few-step student.
#[derive(Debug, Clone)]
pub enum Net {
    /// Asked for a clean image at any noise level.
    Dit(Dit),
    /// Asked for the next point of its own trajectory.
    Student(Student),
}

impl Net {
    /// What the network was made from.
    pub fn config(&self) -> NetConfig {
        match self {
            Self::Dit(net) => net.config().clone().into(),
            Self::Student(net) => net.into(),
        }
    }

    /// The transformer: the network itself, or what a student shares among its steps.
    pub fn trunk(&self) -> &Dit {
        match self {
            Self::Dit(net) => net,
            Self::Student(net) => net.trunk(),
        }
    }

    /// See [`Net::trunk`].
    pub fn trunk_mut(&mut self) -> &mut Dit {
        match self {
            Self::Dit(net) => net,
            Self::Student(net) => net.trunk_mut(),
        }
    }

    /// The network if it is a student.
    pub fn student(&self) -> Option<&Student> {
        match self {
            Self::Dit(_) => None,
            Self::Student(net) => Some(net),
        }
    }

    /// See [`Dit::folded`].
    pub fn folded(self) -> Self {
        match self {
            Self::Dit(net) => Self::Dit(net.folded()),
            Self::Student(net) => Self::Student(net.folded()),
        }
    }

    /// See [`Dit::quantized`].
    pub fn quantized(self) -> Option<Self> {
        Some(match self {
            Self::Dit(net) => Self::Dit(net.quantized()?),
            Self::Student(net) => Self::Student(net.quantized()?),
        })
    }
}

/// As that of what it holds: no name of a variant stands in those of the parameters.
impl Module for Net {
    fn collect_devices(&self, devices: Devices) -> Devices {
        match self {
            Self::Dit(net) => net.collect_devices(devices),
            Self::Student(net) => net.collect_devices(devices),
        }
    }

    fn fork(self, device: &Device) -> Self {
        match self {
            Self::Dit(net) => Self::Dit(net.fork(device)),
            Self::Student(net) => Self::Student(net.fork(device)),
        }
    }

    fn to_device(self, device: &Device) -> Self {
        match self {
            Self::Dit(net) => Self::Dit(net.to_device(device)),
            Self::Student(net) => Self::Student(net.to_device(device)),
        }
    }

    fn train(self) -> Self {
        match self {
            Self::Dit(net) => Self::Dit(net.train()),
            Self::Student(net) => Self::Student(net.train()),
        }
    }

    fn valid(&self) -> Self {
        match self {
            Self::Dit(net) => Self::Dit(net.valid()),
            Self::Student(net) => Self::Student(net.valid()),
        }
    }

    fn materialize(self) -> Self {
        match self {
            Self::Dit(net) => Self::Dit(net.materialize()),
            Self::Student(net) => Self::Student(net.materialize()),
        }
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match self {
            Self::Dit(net) => net.visit(visitor),
            Self::Student(net) => net.visit(visitor),
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        match self {
            Self::Dit(net) => Self::Dit(net.map(mapper)),
            Self::Student(net) => Self::Student(net.map(mapper)),
        }
    }
}

impl From<Dit> for Net {
    fn from(net: Dit) -> Self {
        Self::Dit(net)
    }
}

impl From<Student> for Net {
    fn from(net: Student) -> Self {
        Self::Student(net)
    }
}
