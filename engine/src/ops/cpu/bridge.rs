//! From burn tensors to a kernel and back, with and without gradients.

use std::fmt;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, BackendTypes, Flex};
use burn::tensor::Tensor;

/// A fused operation on f32 tensors in this process's memory, with its derivative.
pub(in crate::ops) trait Kernel: fmt::Debug + Clone + Send + 'static {
    /// The output. Inputs that nobody else holds may be overwritten.
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor;

    /// The gradient of each input that is `wanted`, from that of the output.
    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>>;
}

type WithGradients = Autodiff<Flex, NoCheckpointing>;
type Tracked = <WithGradients as BackendTypes>::FloatTensorPrimitive;

/// An input of a kernel, of any rank.
pub(in crate::ops) enum Operand {
    Plain(FlexTensor),
    Tracked(Tracked),
}

/// The memory of a tensor without gradients.
///
/// # Panics
/// If `available` is false for the tensor.
pub(in crate::ops) fn host<const D: usize>(x: Tensor<D>) -> FlexTensor {
    x.try_into_primitive::<Flex>().expect("on the CPU")
}

/// The tensor of a memory.
pub(in crate::ops) fn device<const D: usize>(x: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(x)
}

impl<const D: usize> From<Tensor<D>> for Operand {
    /// # Panics
    /// If `available` is false for the tensor.
    fn from(x: Tensor<D>) -> Self {
        match x.is_autodiff() {
            true => Self::Tracked(x.try_into_primitive::<WithGradients>().expect("on the CPU")),
            false => Self::Plain(host(x)),
        }
    }
}

impl Operand {
    fn is_tracked(&self) -> bool {
        matches!(self, Self::Tracked(_))
    }

    fn plain(self) -> FlexTensor {
        match self {
            Self::Plain(tensor) => tensor,
            Self::Tracked(tensor) => tensor.into_primitive(),
        }
    }

    fn tracked(self) -> Tracked {
        match self {
            Self::Plain(tensor) => Tracked::new(tensor),
            Self::Tracked(tensor) => tensor,
        }
    }
}

/// Applies a kernel of up to 8 inputs; gradients are recorded if any input records them.
pub(in crate::ops) fn run<const D: usize>(kernel: impl Kernel, inputs: Vec<Operand>) -> Tensor<D> {
    if !inputs.iter().any(Operand::is_tracked) {
        return device(kernel.forward(inputs.into_iter().map(Operand::plain).collect()));
    }
    let inputs: Vec<Tracked> = inputs.into_iter().map(Operand::tracked).collect();
    let output = match inputs.len() {
        1 => record::<_, 1>(kernel, inputs),
        2 => record::<_, 2>(kernel, inputs),
        3 => record::<_, 3>(kernel, inputs),
        4 => record::<_, 4>(kernel, inputs),
        5 => record::<_, 5>(kernel, inputs),
        6 => record::<_, 6>(kernel, inputs),
        7 => record::<_, 7>(kernel, inputs),
        _ => record::<_, 8>(kernel, inputs),
    };
    Tensor::from_primitive::<WithGradients>(output)
}

/// The backward step of a kernel.
#[derive(Debug)]
struct Step<K, const N: usize>(K);

fn record<K: Kernel, const N: usize>(kernel: K, inputs: Vec<Tracked>) -> Tracked {
    let inputs: [Tracked; N] = inputs.try_into().expect("one node per input");
    let nodes = inputs.each_ref().map(Tracked::node);
    let step = Step::<K, N>(kernel.clone()).prepare::<NoCheckpointing>(nodes);
    let values = |inputs: [Tracked; N]| inputs.into_iter().map(Tracked::into_primitive).collect();
    match step.compute_bound().stateful() {
        OpsKind::Tracked(mut step) => {
            let saved = inputs.each_ref().map(|input| step.checkpoint(input));
            step.finish(saved, kernel.forward(values(inputs)))
        }
        OpsKind::UnTracked(step) => step.finish(kernel.forward(values(inputs))),
    }
}

impl<K: Kernel, const N: usize> Backward<Flex, N> for Step<K, N> {
    type State = [NodeId; N];

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        gradients: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        let inputs = ops.state.into_iter().map(|id| checkpointer.retrieve_node_output(id));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = self.0.backward(inputs.collect(), gradient, &wanted);
        for (parent, found) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(found)) = (parent, found) {
                gradients.register::<Flex>(parent.id, found);
            }
        }
    }
}
