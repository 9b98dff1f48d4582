//! What a network is told beside the noise level: by role, not by task.

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

use super::config::DitConfig;
use crate::layers::time::Table;
use crate::layers::{
    Activation, Dense, Fresh, Init, KvCache, Mlp, Residual, TimeCode, TimeEmbedder,
};
use crate::ops::activated;

/// The condition of a batch of images, one entry per image in every part.
#[derive(Debug, Clone, Default)]
pub struct Conditioning {
    /// Class ids, `[batch]`; the null class is [`DitConfig::classes`](super::DitConfig::classes). Only and
    /// always of a network that has classes.
    pub class: Option<Tensor<1, Int>>,
    /// A text. Only and always of a network that reads one.
    pub text: Option<Text>,
    /// Who or what is shown, as a [person's adapter](crate::nets::Adapter) has learnt it: added to the condition vector,
    /// `[batch, hidden]`.
    pub token: Option<Tensor<2>>,
    /// Height and width of the image in pixels, and the first over the second, `[batch, 3]` (PixArt-α). Only and always
    /// of a network that [is told](super::DitConfig::sized).
    pub size: Option<Tensor<2>>,
    /// Further images that the tokens of the image attend to, and they to it.
    pub panels: Vec<Panel>,
    /// What branches add to the tokens of the image and the panels before the first block, and after as many blocks as
    /// there is more (see [`Control`](crate::nets::Control)): each `[batch, tokens, hidden]`, of one patch size.
    pub control: Vec<Tensor<3>>,
    /// Tokens that the image attends to, and they not to it, block by block (see [`InContext`](crate::nets::InContext)).
    pub seen: Vec<KvCache>,
}

/// An encoded text.
#[derive(Debug, Clone)]
pub struct Text {
    /// `[batch, tokens, width]`.
    pub tokens: Tensor<3>,
    /// Tokens of each text, where shorter ones are filled up behind their ends; `None` where all are as long.
    pub lengths: Option<Vec<usize>>,
    /// The text as one vector, `[batch, width]`.
    pub pooled: Option<Tensor<2>>,
}

/// A further image beside the one that is made, on the same canvas (IC-Portrait, section 7.1 of the
/// specification; OminiControl).
#[derive(Debug, Clone)]
pub struct Panel {
    /// `[batch, channels, height, width]`, as a network input: scaled by `c_in`.
    pub image: Tensor<4>,
    /// Row and column of its first pixel on the canvas, those of the image being 0, in pixels (or latent
    /// cells); negative ones are above or to the left.
    pub origin: [f64; 2],
    /// What the network is told about the noise level of this panel, in the unit it was trained with.
    pub time: f64,
}

impl Conditioning {
    /// Classes alone, one per image.
    pub fn classes(ids: &[usize], device: &Device) -> Self {
        let ids: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        let count = ids.len();
        let class = Tensor::from_data(TensorData::new(ids, [count]), device);
        Self { class: Some(class), ..Self::default() }
    }

    /// That of some of the images, in this order.
    pub fn select(&self, images: &[usize]) -> Self {
        let device = match (&self.class, &self.text, self.panels.first()) {
            (Some(ids), ..) => ids.device(),
            (_, Some(text), _) => text.tokens.device(),
            (.., Some(panel)) => panel.image.device(),
            _ => return Self::default(),
        };
        let rows: Vec<i64> = images.iter().map(|&image| image as i64).collect();
        let at = Tensor::<1, Int>::from_data(TensorData::new(rows, [images.len()]), &device);
        let text = |text: &Text| Text {
            tokens: text.tokens.clone().select(0, at.clone()),
            lengths: text
                .lengths
                .as_ref()
                .map(|all| images.iter().map(|&image| all[image]).collect()),
            pooled: text.pooled.as_ref().map(|pooled| pooled.clone().select(0, at.clone())),
        };
        let panel = |panel: &Panel| Panel {
            image: panel.image.clone().select(0, at.clone()),
            ..panel.clone()
        };
        Self {
            class: self.class.as_ref().map(|ids| ids.clone().select(0, at.clone())),
            text: self.text.as_ref().map(text),
            token: self.token.as_ref().map(|token| token.clone().select(0, at.clone())),
            size: self.size.as_ref().map(|size| size.clone().select(0, at.clone())),
            panels: self.panels.iter().map(panel).collect(),
            control: self.control.iter().map(|part| part.clone().select(0, at.clone())).collect(),
            seen: self.seen.iter().map(|tokens| tokens.select(&at)).collect(),
        }
    }

    /// That of the images of both, those of `self` first.
    ///
    /// # Panics
    /// If a part is there in one of them only, or differs in more than the number of images.
    pub fn followed_by(self, other: Self) -> Self {
        fn both<T>(a: Option<T>, b: Option<T>, part: &str, join: impl Fn(T, T) -> T) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(join(a, b)),
                (None, None) => None,
                _ => panic!("one of two conditions has {part}"),
            }
        }
        assert_eq!(self.panels.len(), other.panels.len(), "panels of two conditions");
        assert_eq!(self.control.len(), other.control.len(), "control of two conditions");
        assert_eq!(self.seen.len(), other.seen.len(), "tokens seen of two conditions");
        let control = self.control.into_iter().zip(other.control);
        let seen = self.seen.iter().zip(&other.seen);
        Self {
            class: both(self.class, other.class, "a class", |a, b| Tensor::cat(vec![a, b], 0)),
            text: both(self.text, other.text, "a text", |a, b| Text {
                tokens: Tensor::cat(vec![a.tokens, b.tokens], 0),
                lengths: both(a.lengths, b.lengths, "lengths", |a, b| [a, b].concat()),
                pooled: both(a.pooled, b.pooled, "a pooled text", |a, b| {
                    Tensor::cat(vec![a, b], 0)
                }),
            }),
            token: both(self.token, other.token, "a token", |a, b| Tensor::cat(vec![a, b], 0)),
            size: both(self.size, other.size, "a size", |a, b| Tensor::cat(vec![a, b], 0)),
            panels: self
                .panels
                .into_iter()
                .zip(other.panels)
                .map(|(a, b)| a.followed_by(b))
                .collect(),
            control: control.map(|(a, b)| Tensor::cat(vec![a, b], 0)).collect(),
            seen: seen.map(|(a, b)| a.followed_by(b)).collect(),
        }
    }

    /// The same without gradients.
    pub(crate) fn without_autodiff(&self) -> Self {
        let text = |text: &Text| Text {
            tokens: text.tokens.clone().without_autodiff(),
            lengths: text.lengths.clone(),
            pooled: text.pooled.clone().map(Tensor::without_autodiff),
        };
        let panel = |panel: &Panel| Panel {
            image: panel.image.clone().without_autodiff(),
            ..panel.clone()
        };
        Self {
            class: self.class.clone(),
            text: self.text.as_ref().map(text),
            token: self.token.clone().map(Tensor::without_autodiff),
            size: self.size.clone().map(Tensor::without_autodiff),
            panels: self.panels.iter().map(panel).collect(),
            control: self.control.iter().map(|part| part.clone().without_autodiff()).collect(),
            seen: self.seen.iter().map(KvCache::without_autodiff).collect(),
        }
    }
}

impl Panel {
    fn followed_by(self, other: Self) -> Self {
        assert_eq!(
            (self.origin, self.time),
            (other.origin, other.time),
            "panels of two conditions"
        );
        Self { image: Tensor::cat(vec![self.image, other.image], 0), ..self }
    }
}

impl DitConfig {
    pub(super) fn init_embedder(&self, init: &Init<'_>) -> Embedder {
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        let (rows, preserved) = (self.classes + 1, self.magnitude.normalized_embeddings);
        let activation = self.embedder_activation();
        let widths = self.condition_widths();
        let [_, hidden] = widths;
        let pooled = |width| {
            let (up, down) = (dense(width, hidden), dense(hidden, hidden));
            Mlp::new(up, down, activation, init)
        };
        Embedder {
            time: TimeEmbedder::new(self.time, widths, activation, dense, init),
            label: (self.classes > 0).then(|| Table::new(rows, hidden, preserved, init)),
            pooled: self.text.as_ref().and_then(|text| text.pooled).map(pooled),
            size: self.sized.then(|| SizeEmbedder::new(self, activation, init)),
            residual: self.magnitude.residual,
            activation: (!self.modulation.single && !self.modulation.unactivated)
                .then_some(activation),
        }
    }

    /// The projection that serves all blocks, at first zero.
    pub(super) fn init_single(&self, init: &Init<'_>) -> Option<Dense> {
        let parts = (2.0 * self.modulation.width(true) * self.hidden as f64) as usize;
        let [_, condition] = self.condition_widths();
        let dense = self.dense(condition, parts).with_free_weights(Fresh::Constant(0.0));
        (self.modulation.single || self.modulation.common).then(|| dense.init(init))
    }
}

/// From noise level, class and pooled text to the condition vector.
#[derive(Module, Debug)]
pub struct Embedder {
    /// Embedding of the noise level.
    pub time: TimeEmbedder,
    /// `[classes + 1, hidden]`; the last row is the null class.
    pub label: Option<Table>,
    /// `[pooled, hidden]` and `[hidden, hidden]`.
    pub pooled: Option<Mlp>,
    /// Embedding of the size of the image.
    pub size: Option<SizeEmbedder>,
    #[module(skip)]
    pub(super) residual: Residual,
    /// None before adaLN-single, whose head takes the condition as it is, and where blocks do.
    #[module(skip)]
    pub(super) activation: Option<Activation>,
}

/// Embeds height, width and their ratio, each to a third of the condition.
#[derive(Module, Debug)]
pub struct SizeEmbedder {
    /// Of height and width.
    pub side: TimeEmbedder,
    /// Of height over width.
    pub ratio: TimeEmbedder,
}

/// Length of the code of each number of a size.
const SIZE_CHANNELS: usize = 256;

impl SizeEmbedder {
    fn new(config: &DitConfig, activation: Activation, init: &Init<'_>) -> Self {
        let code = TimeCode::Sinusoidal { channels: SIZE_CHANNELS, frequency_shift: 0.0 };
        let dense = |inputs, outputs| config.dense(inputs, outputs);
        let third = config.condition_widths()[1] / 3;
        let new = || TimeEmbedder::new(code, [third; 2], activation, dense, init);
        Self { side: new(), ratio: new() }
    }

    /// `[batch, 3]` to `[batch, hidden]`.
    fn forward(&self, size: Tensor<2>) -> Tensor<2> {
        let size = size.cast(FloatDType::F32);
        let [batch, _] = size.dims();
        let sides = self.side.forward(size.clone().narrow(1, 0, 2).reshape([2 * batch]));
        let ratio = self.ratio.forward(size.narrow(1, 2, 1).reshape([batch])); // [batch, hidden / 3]
        let third = ratio.dims()[1];
        Tensor::cat(vec![sides.reshape([batch, 2 * third]), ratio], 1)
    }
}

impl Embedder {
    /// The condition vector, activated where all take it so.
    ///
    /// # Shapes
    /// `time`: `[batch]`, output: `[batch, 1, hidden]`
    ///
    /// # Panics
    /// If a class, a pooled text or a size is given to a network that takes none, or none to one that does.
    pub fn forward(&self, time: Tensor<1>, told: &Conditioning) -> Tensor<3> {
        let time = self.time.forward(time.cast(FloatDType::F32)); // [batch, hidden]
        let sum = match (&self.label, &told.class) {
            (Some(table), Some(ids)) => {
                let label = table.forward(ids.clone()).cast(FloatDType::from(time.dtype()));
                self.residual.sum(time, label)
            }
            (None, None) => time,
            (Some(_), None) => panic!("a network of classes is told none"),
            (None, Some(_)) => panic!("a network without classes is told one"),
        };
        let pooled = told.text.as_ref().and_then(|text| text.pooled.clone());
        let sum = match (&self.pooled, pooled) {
            (Some(mlp), Some(pooled)) => {
                self.residual.sum(sum, mlp.forward(pooled.cast(mlp.up.dtype())))
            }
            (None, None) => sum,
            (Some(_), None) => panic!("a network of pooled texts is told none"),
            (None, Some(_)) => panic!("a network without pooled texts is told one"),
        };
        let sum = match (&self.size, &told.size) {
            (Some(embedder), Some(size)) => self.residual.sum(sum, embedder.forward(size.clone())),
            (None, None) => sum,
            (Some(_), None) => panic!("a network of sizes is told none"),
            (None, Some(_)) => panic!("a network without sizes is told one"),
        };
        let sum = match &told.token {
            Some(token) => sum.clone() + token.clone().cast(FloatDType::from(sum.dtype())),
            None => sum,
        };
        activated(sum, self.activation).unsqueeze_dim(1) // [batch, 1, hidden]
    }

    pub(super) fn folded(self) -> Self {
        let (label, pooled) = (self.label.map(Table::folded), self.pooled.map(Mlp::folded));
        let size = self
            .size
            .map(|size| SizeEmbedder { side: size.side.folded(), ratio: size.ratio.folded() });
        Self { time: self.time.folded(), label, pooled, size, ..self }
    }
}
