//! The trained parameters of a module as a list of flat tensors.
//!
//! Optimiser moments and averages are such lists, in the order in which the module is visited. Frozen
//! parameters are left out.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

/// Values, without gradients, each `[elements]`.
pub fn values<M: Module>(module: &M) -> Vec<Tensor<1>> {
    struct Values(Vec<Tensor<1>>);
    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.push(flat(param.val().without_autodiff()));
            }
        }
    }
    let mut visitor = Values(Vec::new());
    module.visit(&mut visitor);
    visitor.0
}

/// Gradients, each `[elements]`; zeros where the loss does not depend on a parameter.
pub fn gradients<M: Module>(module: &M, gradients: &Gradients) -> Vec<Tensor<1>> {
    struct Grads<'a>(Vec<Tensor<1>>, &'a Gradients);
    impl ModuleVisitor for Grads<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let value = param.val();
                let grad = value.grad(self.1);
                self.0.push(flat(grad.unwrap_or_else(|| value.without_autodiff().zeros_like())));
            }
        }
    }
    let mut visitor = Grads(Vec::new(), gradients);
    module.visit(&mut visitor);
    visitor.0
}

/// Dotted names, such as `blocks.0.mlp.up.weight`.
pub fn names<M: Module>(module: &M) -> Vec<String> {
    described(module).into_iter().map(|(name, _)| name).collect()
}

/// Shapes, `[in, out]`, of the matrices in the blocks of a network; `None` for all other parameters.
pub fn matrices<M: Module>(module: &M) -> Vec<Option<[usize; 2]>> {
    let matrix = |(name, shape): (String, Vec<usize>)| {
        let in_block = name.split('.').any(|part| part == "blocks");
        shape.try_into().ok().filter(|_| in_block)
    };
    described(module).into_iter().map(matrix).collect()
}

/// Names and shapes.
fn described<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    #[derive(Default)]
    struct Described {
        path: Vec<String>,
        found: Vec<(String, Vec<usize>)>,
    }
    impl ModuleVisitor for Described {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.found.push((self.path.join("."), param.val().dims().to_vec()));
            }
        }
    }
    let mut visitor = Described::default();
    module.visit(&mut visitor);
    visitor.found
}

/// The module with new values, in the order of [`values`].
///
/// # Panics
/// If a value is missing or has another number of elements.
pub fn with_values<M: Module>(module: M, values: impl IntoIterator<Item = Tensor<1>>) -> M {
    struct Replace<I>(I);
    impl<I: Iterator<Item = Tensor<1>>> ModuleMapper for Replace<I> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !param.is_require_grad() {
                return param;
            }
            let value = self.0.next().expect("one value per trained parameter");
            param.map(|old| {
                let value = value.reshape(old.dims());
                if old.is_autodiff() { value.autodiff().require_grad() } else { value }
            })
        }
    }
    module.map(&mut Replace(values.into_iter()))
}

fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    x.reshape([-1])
}
