//! What pickles build through names: tensors, storages, ordered dicts, sets, bytes, inert objects.
//! Each name does here what it would make in Python, as data; a name that is called with anything
//! else than its arguments is a fault.

use std::sync::Arc;

use super::globals::{self, Global};
use super::machine::{MOST_DIMENSIONS, Machine};
use super::{Node, NodeId, PickleFault, Storage, Tensor};
use crate::Result;

/// torch's own keys are numbers. Longer ones only cost time, as they are looked up for each tensor.
const LONGEST_KEY: usize = 1024;

impl Machine<'_, '_> {
    pub(super) fn global(&mut self, opcode: u8) -> Result<()> {
        let position = self.input.position() - 1;
        let (module, name) = if opcode == b'c' {
            (self.input.line("a name")?, self.input.line("a name")?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.node(module), self.node(name)) {
                (Node::Text(module), Node::Text(name)) => (module.to_string(), name.to_string()),
                _ => return Err(self.malformed("a name is asked for by something other than text")),
            }
        };
        match globals::lookup(&module, &name) {
            Some(global) => self.push(Node::Global(global)),
            None => Err(self.input.fault(PickleFault::Global {
                module,
                name,
                position,
            })),
        }
    }

    pub(super) fn reduce(&mut self) -> Result<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Node::Global(global) = *self.node(callable) else {
            return Err(self.malformed("something other than an allowed name is called"));
        };
        let arguments = self.tuple(arguments)?;
        let node = self.call(global, &arguments)?;
        self.push(node)
    }

    /// The elements of a tuple of arguments.
    fn tuple(&mut self, id: NodeId) -> Result<Vec<NodeId>> {
        match self.node(id) {
            Node::Tuple(items) => {
                let items = items.clone();
                self.charge(items.len())?;
                Ok(items)
            }
            _ => Err(self.malformed("arguments are not a tuple")),
        }
    }

    fn call(&mut self, global: Global, arguments: &[NodeId]) -> Result<Node> {
        match (global, arguments) {
            (Global::RebuildTensor, [storage, offset, size, stride, ..]) => {
                self.tensor([*storage, *offset, *size, *stride], None)
            }
            (Global::RebuildTensorV3, [storage, offset, size, stride, _, _, dtype, ..]) => {
                self.tensor([*storage, *offset, *size, *stride], Some(*dtype))
            }
            (Global::RebuildParameter, [data, ..]) => match self.node(*data) {
                node @ Node::Tensor(_) => Ok(node.clone()),
                _ => Err(self.malformed("a parameter is made of something other than a tensor")),
            },
            (Global::RebuildFromType, [function, class, arguments, ..]) => {
                self.rebuild_from_type(*function, *class, *arguments)
            }
            (Global::OrderedDict, []) => Ok(Node::Dict(Vec::new())),
            (Global::OrderedDict, [items]) => self.dict_of(*items),
            (Global::Size, [items]) => match self.node(*items) {
                Node::Tuple(_) | Node::List(_) => {
                    let items = self.items(*items)?;
                    Ok(Node::Tuple(items))
                }
                _ => Err(self.malformed("a size is made of something other than a tuple")),
            },
            (Global::Set, []) => Ok(Node::Set(Vec::new())),
            (Global::Set, [items]) => Ok(Node::Set(self.items(*items)?)),
            (Global::Device, [name, ..]) => match self.node(*name) {
                Node::Text(name) => Ok(Node::Text(Arc::clone(name))),
                _ => Err(self.malformed("a device has no name")),
            },
            (Global::Encode, [text, ..]) => self.encode(*text),
            (Global::Inert(class), []) => Ok(Node::Object(class, None)),
            _ => Err(self.malformed("an allowed name is called with arguments that do not fit it")),
        }
    }

    fn rebuild_from_type(
        &mut self,
        function: NodeId,
        class: NodeId,
        arguments: NodeId,
    ) -> Result<Node> {
        let rebuilds = matches!(
            self.node(function),
            Node::Global(
                Global::RebuildTensor | Global::RebuildTensorV3 | Global::RebuildParameter
            )
        );
        let is_tensor = matches!(self.node(class), Node::Global(Global::TensorClass));
        match self.node(function) {
            &Node::Global(global) if rebuilds && is_tensor => {
                let arguments = self.tuple(arguments)?;
                self.call(global, &arguments)
            }
            _ => Err(self.malformed("a tensor is rebuilt by or as something other than a tensor")),
        }
    }

    fn items(&mut self, id: NodeId) -> Result<Vec<NodeId>> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) | Node::Set(items) => {
                let items = items.clone();
                self.charge(items.len())?;
                Ok(items)
            }
            _ => Err(self.malformed("a collection is made of something that has no elements")),
        }
    }

    /// An ordered dict from its pairs, each a list or tuple of two.
    fn dict_of(&mut self, id: NodeId) -> Result<Node> {
        let mut pairs = Vec::new();
        for item in self.items(id)? {
            match self.items(item)?.as_slice() {
                &[key, value] => pairs.push((key, value)),
                _ => return Err(self.malformed("a dict is made of something other than pairs")),
            }
        }
        Ok(Node::Dict(pairs))
    }

    /// Bytes as protocol 2 writes them: text whose characters are the bytes.
    fn encode(&mut self, text: NodeId) -> Result<Node> {
        let Node::Text(text) = self.node(text) else {
            return Err(self.malformed("bytes are made of something other than text"));
        };
        let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
        let Some(bytes) = bytes else {
            return Err(self.malformed("bytes are made of text outside Latin-1"));
        };
        self.charge(bytes.len() / 16)?;
        Ok(Node::Bytes(bytes))
    }

    pub(super) fn new_object(&mut self) -> Result<()> {
        let (arguments, class) = (self.pop()?, self.pop()?);
        let arguments = self.tuple(arguments)?;
        match *self.node(class) {
            Node::Global(global @ (Global::Inert(_) | Global::OrderedDict | Global::Set)) => {
                let node = self.call(global, &arguments)?;
                self.push(node)
            }
            _ => Err(self.malformed("an object of something other than an allowed class is made")),
        }
    }

    pub(super) fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let target = self.top()?;
        let is_dict = matches!(self.node(state), Node::Dict(_));
        match &mut self.nodes[target as usize] {
            Node::Object(_, attributes) if is_dict => {
                *attributes = Some(state);
                Ok(())
            }
            // Attributes of a state dict (`_metadata`) and of tensors say nothing about their
            // values.
            Node::Dict(_) | Node::Tensor(_) => Ok(()),
            _ => Err(self.malformed("a state is set on something that has none")),
        }
    }

    pub(super) fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop()?;
        let fields = self.tuple(id)?;
        let storage = self
            .storage(&fields)
            .ok_or_else(|| self.malformed("a persistent id is not that of a tensor storage"))?;
        self.push(Node::Storage(Arc::new(storage)))
    }

    /// `('storage', type, key, location, length)`, in older files with `(view key, offset, length)`
    /// or None behind it.
    fn storage(&self, fields: &[NodeId]) -> Option<Storage> {
        let [tag, kind, key, _location, len, rest @ ..] = fields else {
            return None;
        };
        if !matches!(self.node(*tag), Node::Text(tag) if &**tag == "storage") {
            return None;
        }
        let dtype = match self.node(*kind) {
            Node::Global(Global::Storage(dtype)) => Some(*dtype),
            Node::Global(Global::UntypedStorage) => None,
            _ => return None,
        };
        let key = match self.node(*key) {
            Node::Text(key) if key.len() <= LONGEST_KEY => Arc::clone(key),
            Node::Int(key) => key.to_string().into(),
            _ => return None,
        };
        let view_offset = match rest.first().map(|id| self.node(*id)) {
            None | Some(Node::None) => 0,
            Some(Node::Tuple(view)) => self.size(*view.get(1)?)?,
            Some(_) => return None,
        };
        Some(Storage {
            key,
            dtype,
            len: self.size(*len)?,
            view_offset,
        })
    }

    fn size(&self, id: NodeId) -> Option<u64> {
        match self.node(id) {
            Node::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Dimensions or strides: a tuple of a few non-negative integers.
    fn dimensions(&self, id: NodeId) -> Option<Vec<usize>> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) if items.len() <= MOST_DIMENSIONS => items
                .iter()
                .map(|&item| usize::try_from(self.size(item)?).ok())
                .collect(),
            _ => None,
        }
    }

    fn tensor(
        &mut self,
        [storage, offset, size, stride]: [NodeId; 4],
        dtype: Option<NodeId>,
    ) -> Result<Node> {
        let build = || {
            let Node::Storage(storage) = self.node(storage) else {
                return None;
            };
            let dtype = match dtype.map(|id| self.node(id)) {
                Some(Node::Global(Global::DType(dtype))) => *dtype,
                Some(_) => return None,
                None => storage.dtype?,
            };
            let (shape, strides) = (self.dimensions(size)?, self.dimensions(stride)?);
            (shape.len() == strides.len()).then_some(Tensor {
                storage: Arc::clone(storage),
                dtype,
                offset: self.size(offset)?,
                shape,
                strides,
            })
        };
        let tensor = build().ok_or_else(|| {
            self.malformed("a tensor's storage, offset, size or stride is not what it should be")
        })?;
        self.charge(tensor.shape.len() + tensor.strides.len())?;
        Ok(Node::Tensor(Arc::new(tensor)))
    }
}
