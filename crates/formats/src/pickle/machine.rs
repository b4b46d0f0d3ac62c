//! The pickle machine: one opcode after the other, a stack, a memo, and an arena of values. Knows
//! no file layout.

use std::collections::HashMap;

use super::input::Input;
use super::{Node, NodeId, Pickle, PickleFault};
use crate::Result;
use crate::error::FormatError;

/// A checkpoint of a thousand tensors builds some ten thousand values; this leaves room for any
/// honest file.
const MOST_NODES: usize = 1 << 22;

/// References and memo entries: an honest file has a few for each value.
const MOST_SMALL: usize = 1 << 24;

/// The most dimensions a tensor has in torch.
pub(super) const MOST_DIMENSIONS: usize = 64;

/// Runs one pickle to its end; the input then stands behind it.
pub(crate) fn run(input: &mut Input<'_>) -> Result<Pickle> {
    let mut machine = Machine {
        input,
        nodes: Vec::new(),
        charged: 0,
        small: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let opcode = machine.input.byte("an opcode")?;
        if opcode == b'.' {
            let root = machine.pop()?;
            return Ok(Pickle {
                nodes: machine.nodes,
                root,
            });
        }
        machine.step(opcode)?;
    }
}

pub(super) struct Machine<'i, 'a> {
    pub(super) input: &'i mut Input<'a>,
    pub(super) nodes: Vec<Node>,
    /// Values copied besides the nodes themselves, so that a small file cannot ask for the same
    /// large copy again and again.
    charged: usize,
    /// Steps that cost a few bytes each.
    small: usize,
    stack: Vec<NodeId>,
    marks: Vec<usize>,
    memo: HashMap<u64, NodeId>,
}

impl Machine<'_, '_> {
    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.protocol(),
            0x95 => self.input.length::<8>("a frame").map(drop),
            b'(' => {
                self.charge_small()?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop_or_unmark(),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.charge_small()?;
                self.stack.push(top);
                Ok(())
            }
            b'q' | b'r' | b'p' | 0x94 | b'h' | b'j' | b'g' => self.memo_opcode(opcode),
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b | b'F' | b'G' => self.number(opcode),
            b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e => {
                self.string(opcode)
            }
            b']' | b'a' | b'e' | b'l' | b')' | b't' | 0x85 | 0x86 | 0x87 => self.sequence(opcode),
            b'}' | b'd' | b's' | b'u' | 0x8f | 0x90 | 0x91 => self.mapping(opcode),
            b'c' | 0x93 => self.global(opcode),
            b'R' => self.reduce(),
            0x81 => self.new_object(),
            b'b' => self.build(),
            b'Q' => self.persistent_id(),
            _ => Err(self.input.fault(PickleFault::Opcode {
                opcode,
                position: self.input.position() - 1,
            })),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.input.byte("the protocol number")? {
            0..=5 => Ok(()),
            other => {
                Err(self.malformed(format!("protocol {other} is unknown, expected at most 5")))
            }
        }
    }

    // Stack and memo.

    pub(super) fn malformed(&self, message: impl Into<String>) -> FormatError {
        self.input.malformed(message)
    }

    pub(super) fn charge(&mut self, copied: usize) -> Result<()> {
        self.charged = self.charged.saturating_add(copied);
        if self.charged > MOST_NODES {
            return Err(self
                .input
                .fault(PickleFault::TooLarge { limit: MOST_NODES }));
        }
        Ok(())
    }

    /// A few bytes beside the nodes: a mark, a reference on the stack, a memo entry.
    fn charge_small(&mut self) -> Result<()> {
        self.small += 1;
        if self.small > MOST_SMALL {
            return Err(self
                .input
                .fault(PickleFault::TooLarge { limit: MOST_SMALL }));
        }
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<NodeId> {
        self.charge(1)?;
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as NodeId)
    }

    pub(super) fn push(&mut self, node: Node) -> Result<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The stack above the last mark is all that an opcode may take from.
    fn has_top(&self) -> bool {
        self.stack.len() > self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn top(&self) -> Result<NodeId> {
        match self.stack.last() {
            Some(&id) if self.has_top() => Ok(id),
            _ => Err(self.malformed("an opcode needs a value, the stack has none")),
        }
    }

    pub(super) fn pop(&mut self) -> Result<NodeId> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_or_unmark(&mut self) -> Result<()> {
        if self.has_top() {
            self.stack.pop();
            return Ok(());
        }
        match self.marks.pop() {
            Some(_) => Ok(()),
            None => Err(self.malformed("an opcode needs a value, the stack has none")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<NodeId>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err(self.malformed("an opcode needs a mark, there is none")),
        }
    }

    fn memo_opcode(&mut self, opcode: u8) -> Result<()> {
        let inside = "a memo number";
        let key = match opcode {
            b'q' | b'h' => self.input.length::<1>(inside)?,
            b'r' | b'j' => self.input.length::<4>(inside)?,
            0x94 => self.memo.len() as u64,
            _ => {
                let line = self.input.line(inside)?;
                line.parse()
                    .map_err(|_| self.malformed("a memo number is not a number"))?
            }
        };
        if matches!(opcode, b'h' | b'j' | b'g') {
            let Some(&id) = self.memo.get(&key) else {
                return Err(self.malformed(format!("memo entry {key} was never stored")));
            };
            self.charge_small()?;
            self.stack.push(id);
            return Ok(());
        }
        let id = self.top()?;
        self.charge_small()?;
        self.memo.insert(key, id);
        Ok(())
    }

    // Plain values.

    fn number(&mut self, opcode: u8) -> Result<()> {
        let inside = "a number";
        let node = match opcode {
            b'J' => Node::Int(i32::from_le_bytes(self.input.array(inside)?).into()),
            b'K' => Node::Int(self.input.byte(inside)?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.input.array(inside)?).into()),
            b'G' => Node::Float(f64::from_be_bytes(self.input.array(inside)?)),
            0x8a => {
                let len = self.input.length::<1>(inside)?;
                long(self.input.bytes(len, inside)?)
            }
            0x8b => {
                let len = self.input.length::<4>(inside)?;
                long(self.input.bytes(len, inside)?)
            }
            _ => {
                let line = self.input.line(inside)?;
                text_number(opcode, &line).ok_or_else(|| {
                    self.malformed(format!("`{}` is not a number", line.escape_debug()))
                })?
            }
        };
        self.push(node)
    }

    fn string(&mut self, opcode: u8) -> Result<()> {
        let inside = "text";
        let len = match opcode {
            b'U' | 0x8c | b'C' => self.input.length::<1>(inside)?,
            b'T' | b'X' | b'B' => self.input.length::<4>(inside)?,
            0x8d | 0x8e => self.input.length::<8>(inside)?,
            _ => {
                let line = self.input.line(inside)?;
                let text = text_line(opcode, &line)
                    .ok_or_else(|| self.malformed("escaped text of protocol 0 is not supported"))?;
                return self.push(Node::Text(text.into()));
            }
        };
        let node = match opcode {
            b'B' | b'C' | 0x8e => Node::Bytes(self.input.bytes(len, inside)?),
            // Python 2's str: text if it can be, bytes if not.
            b'T' | b'U' => match String::from_utf8(self.input.bytes(len, inside)?) {
                Ok(text) => Node::Text(text.into()),
                Err(error) => Node::Bytes(error.into_bytes()),
            },
            _ => Node::Text(self.input.text(len, inside)?.into()),
        };
        self.push(node)
    }

    fn sequence(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            b']' => self.push(Node::List(Vec::new())),
            b')' => self.push(Node::Tuple(Vec::new())),
            b'l' | b't' => {
                let items = self.pop_to_mark()?;
                self.push(if opcode == b'l' {
                    Node::List(items)
                } else {
                    Node::Tuple(items)
                })
            }
            b'a' | b'e' => {
                let items = if opcode == b'a' {
                    vec![self.pop()?]
                } else {
                    self.pop_to_mark()?
                };
                let target = self.top()?;
                match &mut self.nodes[target as usize] {
                    Node::List(list) => {
                        list.extend(items);
                        Ok(())
                    }
                    _ => Err(self.malformed("values are appended to something other than a list")),
                }
            }
            _ => {
                let count = usize::from(opcode - 0x84);
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Node::Tuple(items))
            }
        }
    }

    fn mapping(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            b'}' => self.push(Node::Dict(Vec::new())),
            0x8f => self.push(Node::Set(Vec::new())),
            0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::Set(items))
            }
            0x90 => {
                let items = self.pop_to_mark()?;
                let target = self.top()?;
                match &mut self.nodes[target as usize] {
                    Node::Set(set) => {
                        set.extend(items);
                        Ok(())
                    }
                    _ => Err(self.malformed("values are added to something other than a set")),
                }
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                let pairs = self.pairs(items)?;
                self.push(Node::Dict(pairs))
            }
            _ => {
                let items = if opcode == b'u' {
                    self.pop_to_mark()?
                } else {
                    let value = self.pop()?;
                    vec![self.pop()?, value]
                };
                let pairs = self.pairs(items)?;
                let target = self.top()?;
                match &mut self.nodes[target as usize] {
                    Node::Dict(dict) => {
                        dict.extend(pairs);
                        Ok(())
                    }
                    _ => Err(self.malformed("items are set in something other than a dict")),
                }
            }
        }
    }

    fn pairs(&self, items: Vec<NodeId>) -> Result<Vec<(NodeId, NodeId)>> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.malformed("a dict has a key without a value"));
        }
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    }
}

/// A little-endian two's complement integer of any length.
fn long(bytes: Vec<u8>) -> Node {
    if bytes.len() > 8 {
        return Node::BigInt(bytes);
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(&bytes);
    Node::Int(i64::from_le_bytes(wide))
}

/// A number of protocol 0: `I01` is true, `L…L` a long, `F` a float.
fn text_number(opcode: u8, line: &str) -> Option<Node> {
    match (opcode, line) {
        (b'I', "00") => Some(Node::Bool(false)),
        (b'I', "01") => Some(Node::Bool(true)),
        (b'F', _) => line.parse().ok().map(Node::Float),
        (b'L', _) => line.trim_end_matches('L').parse().ok().map(Node::Int),
        _ => line.parse().ok().map(Node::Int),
    }
}

/// Text of protocol 0, without escapes.
fn text_line(opcode: u8, line: &str) -> Option<String> {
    let text = if opcode == b'S' {
        let quote = line.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        line.strip_prefix(quote)?.strip_suffix(quote)?
    } else {
        line
    };
    (!text.contains('\\')).then(|| text.to_owned())
}
