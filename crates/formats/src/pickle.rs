//! A restricted unpickler: it builds plain data, and has no way to run anything. Knows torch's few
//! constructors by name.
//!
//! A pickle is a program. Ours interprets only the opcodes that build data, looks up only the names
//! of its own list, and refuses every other name by its name. Classes that carry nothing but
//! attributes (`argparse.Namespace`) become opaque objects whose attributes can be read. Sizes are
//! never trusted: nothing is allocated beyond what the file holds.

mod build;
mod globals;
mod input;
mod machine;

pub(crate) use input::Input;
pub(crate) use machine::run;

use std::sync::Arc;

use crate::dtype::DType;

/// What is wrong with a pickle, and at which byte of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// The pickle stops in the middle.
    #[error("the pickle ends at byte {position} in the middle of {inside}")]
    Ended {
        /// Where.
        position: u64,
        /// In the middle of what.
        inside: &'static str,
    },
    /// An opcode that builds no plain data, or that does not exist.
    #[error("the pickle uses opcode {} at byte {position}, which is not among those that only build data", opcode_name(*opcode))]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Where.
        position: u64,
    },
    /// A name outside the allow-list.
    #[error(
        "the pickle asks for `{module}.{name}` at byte {position}, which is not among the names that only hold data"
    )]
    Global {
        /// The Python module.
        module: String,
        /// The name in it.
        name: String,
        /// Where.
        position: u64,
    },
    /// Opcodes that do not fit together.
    #[error("the pickle is malformed at byte {position}: {message}")]
    Malformed {
        /// Where.
        position: u64,
        /// What does not fit.
        message: String,
    },
    /// More objects than any checkpoint has.
    #[error("the pickle builds more than {limit} objects")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

/// The opcode in Python's own spelling where a stranger may meet it, else as a byte.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("0x{opcode:02x}"),
    };
    format!("`{name}`")
}

/// Where a value stands among the others of its pickle.
pub(crate) type NodeId = u32;

/// One value. Children are ids, so that cycles and deep nesting are harmless.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, little-endian two's complement.
    BigInt(Vec<u8>),
    Float(f64),
    /// Shared: a text that a small pickle asks for again and again is one text.
    Text(Arc<str>),
    Bytes(Vec<u8>),
    Tuple(Vec<NodeId>),
    List(Vec<NodeId>),
    Set(Vec<NodeId>),
    /// In order of insertion; of a key given twice the last counts.
    Dict(Vec<(NodeId, NodeId)>),
    Global(globals::Global),
    Storage(Arc<Storage>),
    Tensor(Arc<Tensor>),
    /// An inert object: its class, and its attributes once they are set.
    Object(&'static str, Option<NodeId>),
}

/// A block of values that lies elsewhere in the file, known by its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) key: Arc<str>,
    /// The element type; none for an untyped storage, whose `len` is in bytes.
    pub(crate) dtype: Option<DType>,
    /// Number of elements.
    pub(crate) len: u64,
    /// Elements to skip at its start (views, in files of before 2018).
    pub(crate) view_offset: u64,
}

/// A view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) storage: Arc<Storage>,
    pub(crate) dtype: DType,
    /// In elements, from the storage's start.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<usize>,
    /// In elements.
    pub(crate) strides: Vec<usize>,
}

/// The values of one pickle.
#[derive(Debug, Clone)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: NodeId,
}

impl Pickle {
    /// The value that was pickled.
    pub fn root(&self) -> ValueRef<'_> {
        ValueRef {
            pickle: self,
            id: self.root,
        }
    }

    /// Every storage that the pickle mentions.
    pub(crate) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(&**storage),
            _ => None,
        })
    }
}

/// A value inside a pickle. Copying it copies a reference.
#[derive(Debug, Clone, Copy)]
pub struct ValueRef<'a> {
    pickle: &'a Pickle,
    id: NodeId,
}

impl<'a> ValueRef<'a> {
    pub(crate) fn node(self) -> &'a Node {
        &self.pickle.nodes[self.id as usize]
    }

    fn at(self, id: NodeId) -> ValueRef<'a> {
        ValueRef {
            pickle: self.pickle,
            id,
        }
    }

    /// What it is, in Python's words.
    pub fn kind(self) -> &'static str {
        match self.node() {
            Node::None => "None",
            Node::Bool(_) => "bool",
            Node::Int(_) | Node::BigInt(_) => "int",
            Node::Float(_) => "float",
            Node::Text(_) => "str",
            Node::Bytes(_) => "bytes",
            Node::Tuple(_) => "tuple",
            Node::List(_) => "list",
            Node::Set(_) => "set",
            Node::Dict(_) => "dict",
            Node::Global(_) => "type",
            Node::Storage(_) => "storage",
            Node::Tensor(_) => "tensor",
            Node::Object(class, _) => class,
        }
    }

    /// The text, if it is text.
    pub fn as_str(self) -> Option<&'a str> {
        match self.node() {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one of at most 64 bits.
    pub fn as_i64(self) -> Option<i64> {
        match self.node() {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The number, if it is an integer or a float.
    pub fn as_f64(self) -> Option<f64> {
        match self.node() {
            Node::Int(value) => Some(*value as f64),
            Node::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// True or false, if it is that.
    pub fn as_bool(self) -> Option<bool> {
        match self.node() {
            Node::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Whether it is None.
    pub fn is_none(self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// Element type and shape, if it is a tensor.
    pub fn as_tensor(self) -> Option<(DType, &'a [usize])> {
        self.tensor()
            .map(|tensor| (tensor.dtype, tensor.shape.as_slice()))
    }

    pub(crate) fn tensor(self) -> Option<&'a Tensor> {
        match self.node() {
            Node::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The elements of a list, tuple or set; nothing for other values.
    pub fn elements(self) -> impl Iterator<Item = ValueRef<'a>> {
        let ids: &[NodeId] = match self.node() {
            Node::List(ids) | Node::Tuple(ids) | Node::Set(ids) => ids,
            _ => &[],
        };
        ids.iter().map(move |&id| self.at(id))
    }

    /// Keys and values of a dict, or the attributes of an inert object, in order of insertion;
    /// nothing for other values. A key given twice appears twice, the value that counts last.
    pub fn items(self) -> impl Iterator<Item = (ValueRef<'a>, ValueRef<'a>)> {
        self.pairs()
            .iter()
            .map(move |&(key, value)| (self.at(key), self.at(value)))
    }

    /// The value of a text key in a dict, or of an attribute of an inert object.
    pub fn get(self, key: &str) -> Option<ValueRef<'a>> {
        let mut pairs = self.pairs().iter().rev();
        pairs
            .find(|(name, _)| self.at(*name).as_str() == Some(key))
            .map(|&(_, value)| self.at(value))
    }

    fn pairs(self) -> &'a [(NodeId, NodeId)] {
        match self.node() {
            Node::Dict(pairs) => pairs,
            Node::Object(_, Some(state)) => match self.at(*state).node() {
                Node::Dict(pairs) => pairs,
                _ => &[],
            },
            _ => &[],
        }
    }
}
