//! The names that a pickle may ask for, and what each means to us. Everything else is refused.

use crate::dtype::DType;

/// A name from the allow-list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global {
    /// `torch.FloatStorage` and its like.
    Storage(DType),
    /// `torch.UntypedStorage`: bytes.
    UntypedStorage,
    /// `torch.float32` and its like.
    DType(DType),
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`, which share their first four
    /// arguments.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`: the element type is an argument.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`: the tensor is the
    /// first argument.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: a function, a class, and the function's arguments.
    RebuildFromType,
    /// `torch.Tensor`, `torch.nn.parameter.Parameter`: only as the class of the above.
    TensorClass,
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch.Size`.
    Size,
    /// `torch.device`.
    Device,
    /// `set` or `frozenset` of the built-ins.
    Set,
    /// `_codecs.encode`: how protocol 2 writes bytes.
    Encode,
    /// A class that holds attributes and does nothing.
    Inert(&'static str),
}

/// The meaning of `module.name`, if it is allowed.
pub(crate) fn lookup(module: &str, name: &str) -> Option<Global> {
    match (module, name) {
        ("torch", _) => torch_name(name),
        ("torch.storage", "UntypedStorage") => Some(Global::UntypedStorage),
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensorV3),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Some(Global::RebuildParameter)
        }
        ("torch._tensor", "_rebuild_from_type_v2") => Some(Global::RebuildFromType),
        ("torch.nn.parameter", "Parameter" | "Buffer") => Some(Global::TensorClass),
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("__builtin__" | "builtins", "set" | "frozenset") => Some(Global::Set),
        ("_codecs", "encode") => Some(Global::Encode),
        ("argparse", "Namespace") => Some(Global::Inert("argparse.Namespace")),
        _ => None,
    }
}

fn torch_name(name: &str) -> Option<Global> {
    let global = match name {
        "Size" => Global::Size,
        "device" => Global::Device,
        "Tensor" => Global::TensorClass,
        "UntypedStorage" => Global::UntypedStorage,
        "DoubleStorage" => Global::Storage(DType::F64),
        "FloatStorage" => Global::Storage(DType::F32),
        "HalfStorage" => Global::Storage(DType::F16),
        "BFloat16Storage" => Global::Storage(DType::BF16),
        "LongStorage" => Global::Storage(DType::I64),
        "IntStorage" => Global::Storage(DType::I32),
        "ShortStorage" => Global::Storage(DType::I16),
        "CharStorage" => Global::Storage(DType::I8),
        "ByteStorage" => Global::Storage(DType::U8),
        "BoolStorage" => Global::Storage(DType::Bool),
        "ComplexFloatStorage" => Global::Storage(DType::C64),
        "float64" => Global::DType(DType::F64),
        "float32" => Global::DType(DType::F32),
        "float16" => Global::DType(DType::F16),
        "bfloat16" => Global::DType(DType::BF16),
        "int64" => Global::DType(DType::I64),
        "int32" => Global::DType(DType::I32),
        "int16" => Global::DType(DType::I16),
        "int8" => Global::DType(DType::I8),
        "uint8" => Global::DType(DType::U8),
        "uint16" => Global::DType(DType::U16),
        "uint32" => Global::DType(DType::U32),
        "uint64" => Global::DType(DType::U64),
        "bool" => Global::DType(DType::Bool),
        "complex64" => Global::DType(DType::C64),
        "float8_e4m3fn" => Global::DType(DType::F8E4M3),
        "float8_e5m2" => Global::DType(DType::F8E5M2),
        "float8_e8m0fnu" => Global::DType(DType::F8E8M0),
        "float8_e4m3fnuz" => Global::DType(DType::F8E4M3Fnuz),
        "float8_e5m2fnuz" => Global::DType(DType::F8E5M2Fnuz),
        _ => return None,
    };
    Some(global)
}
