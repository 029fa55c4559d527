//! The pickles of `torch.save`, read without running anything: an interpreter that knows plain data and the few names by
//! which torch writes tensors. Whatever else a pickle asks for is refused by its name.
//!
//! Opcodes are those of Python's `pickletools` (protocols 0 to 5), the names those of `torch/_utils.py` and
//! `torch/serialization.py`.

mod names;

use std::collections::HashMap;

use names::{global, refused, spelled};

/// Longer pickles are refused: that of a large model's checkpoint, optimiser included, has a few hundred kilobytes.
pub const LONGEST: usize = 4 << 20;

/// Bounds of what a tensor's description may hold, so that a short pickle cannot make many long ones.
const MOST_DIMENSIONS: usize = 8;
const LONGEST_KEY: usize = 64;

/// The index of a [`Value`] in its [`Pickle`].
pub type Id = usize;

/// What a pickle holds. Values refer to each other by index, since they may be shared, or contain themselves.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Id,
}

/// A value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer; `None` for one that 64 bits do not hold.
    Int(Option<i64>),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes, which nothing here reads.
    Bytes,
    /// A tuple, or a `torch.Size`.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dict or `OrderedDict`: keys and values in their order.
    Dict(Vec<(Id, Id)>),
    /// A type of numbers, such as `float32`.
    DType(&'static str),
    /// The name of something that torch or Python calls.
    Callable(Callable),
    /// Where numbers of tensors lie.
    Storage(Storage),
    /// A tensor.
    Tensor(Box<StoredTensor>),
    /// `torch.device(..)`.
    Device,
}

/// The names that a pickle may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callable {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    Tensor,
    /// `torch._utils._rebuild_parameter`
    Parameter,
    /// `torch.Size`
    Size,
    /// `torch.device`
    Device,
    /// `torch.FloatStorage` and its siblings, by their type of numbers.
    Storage(&'static str),
}

/// A member of the archive with the numbers of one or more tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its name below `data/`.
    pub key: String,
    /// Type of the numbers, as torch calls it.
    pub dtype: &'static str,
    /// How many there are.
    pub count: u64,
}

/// A tensor as a pickle describes it. Its numbers lie in the storage, which is checked here: no element is outside, and there
/// are not more elements than numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Where its numbers lie.
    pub storage: Storage,
    /// Number of the first element.
    pub offset: u64,
    /// Sizes.
    pub shape: Vec<u64>,
    /// Numbers to step over for the next index of each dimension.
    pub strides: Vec<u64>,
}

impl Pickle {
    /// Interprets a pickle.
    ///
    /// # Errors
    /// A pickle that asks for anything but plain data and tensors, is damaged, or longer than [`LONGEST`]; in words.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > LONGEST {
            return Err(format!("the pickle has {} bytes, expected at most {LONGEST}", bytes.len()));
        }
        let mut machine =
            Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let root = machine.run()?;
        Ok(Self { values: machine.values, root })
    }

    /// What the whole pickle is.
    pub fn root(&self) -> &Value {
        &self.values[self.root]
    }

    /// A value by its index.
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// The entries of a dict whose keys are texts.
    pub fn entries<'a>(&'a self, dict: &'a [(Id, Id)]) -> impl Iterator<Item = (&'a str, &'a Value)> {
        dict.iter().filter_map(|(key, value)| match self.get(*key) {
            Value::Text(key) => Some((key.as_str(), self.get(*value))),
            _ => None,
        })
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Each opcode makes at most one value, so memory is bounded by the length of the pickle.
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let opcode = self.take(1)?[0];
            match opcode {
                b'.' => return self.pop(),
                // PROTO and FRAME say what need not be known.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => self.discard()?,
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'g' | b'h' | b'j' => self.recall(opcode)?,
                b'p' | b'q' | b'r' | 0x94 => self.remember(opcode)?,
                b'l' | b'd' | b't' | b']' | b'}' | b')' | 0x85..=0x87 => self.container(opcode)?,
                b'a' | b'e' | b's' | b'u' => self.fill(opcode)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let found = global(module, name)?;
                    self.push(found);
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name]) else {
                        return Err(self.damaged("a name that is no text"));
                    };
                    let found = global(module.as_bytes(), name.as_bytes())?;
                    self.push(found);
                }
                b'R' => self.call()?,
                b'b' => self.set_state()?,
                b'Q' => self.persistent()?,
                b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    return Err(refused(&spelled(module, name)));
                }
                b'o' | 0x81 | 0x92 => return Err(refused(&format!("a constructor (opcode 0x{opcode:02x})"))),
                b'P' => return Err(refused("a persistent object by its text")),
                0x82..=0x84 => return Err(refused("an extension of the pickle registry")),
                _ => self.constant(opcode)?,
            }
        }
    }

    fn constant(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(Some(i64::from(self.take(1)?[0]))),
            b'M' => Value::Int(Some(self.length(2)? as i64)),
            b'J' => Value::Int(Some(i64::from(self.length(4)? as u32 as i32))),
            0x8a => {
                let length = self.length(1)?;
                Value::Int(integer(self.take(length)?))
            }
            0x8b => {
                let length = self.length(4)?;
                Value::Int(integer(self.take(length)?))
            }
            b'I' => match self.line()? {
                b"00" => Value::Bool(false),
                b"01" => Value::Bool(true),
                line => self.decimal(line)?,
            },
            b'L' => {
                let line = self.line()?;
                self.decimal(line.strip_suffix(b"L").unwrap_or(line))?
            }
            b'F' => {
                let line = std::str::from_utf8(self.line()?).ok().and_then(|text| text.parse().ok());
                Value::Float(line.ok_or_else(|| self.damaged("a number that is none"))?)
            }
            b'G' => {
                let bytes = self.take(8)?.try_into().map_err(|_| self.damaged("a number that is none"))?;
                Value::Float(f64::from_be_bytes(bytes))
            }
            // Python 2 wrote names as byte strings, quoted in protocol 0.
            b'S' => {
                let line = self.line()?;
                let ([b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"']) = line else {
                    return Err(self.damaged("a text without quotes"));
                };
                self.text(inner)?
            }
            b'V' => {
                let line = self.line()?;
                self.text(line)?
            }
            b'U' | 0x8c => self.sized_text(1)?,
            b'T' | b'X' => self.sized_text(4)?,
            0x8d => self.sized_text(8)?,
            b'C' | b'B' | 0x8e | 0x96 => {
                let width = match opcode {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                };
                let length = self.length(width)?;
                self.take(length)?;
                Value::Bytes
            }
            b'\x8f' | b'\x90' | b'\x91' => return Err(refused("a set")),
            other => return Err(format!("the pickle holds opcode 0x{other:02x}, which weights do not need; refused")),
        };
        self.push(value);
        Ok(())
    }

    fn container(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b']' => Value::List(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            b'l' => Value::List(self.pop_mark()?),
            b't' => Value::Tuple(self.pop_mark()?),
            b'd' => Value::Dict(self.pairs()?),
            // TUPLE1 to TUPLE3.
            _ => {
                let mut items = (0x84..opcode).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                Value::Tuple(items)
            }
        };
        self.push(value);
        Ok(())
    }

    /// APPEND, APPENDS, SETITEM, SETITEMS.
    fn fill(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b'a' | b'e' => {
                let items = if opcode == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
                let list = self.top()?;
                let Value::List(all) = &mut self.values[list] else {
                    return Err(self.damaged("an item for what is no list"));
                };
                all.extend(items);
            }
            _ => {
                let pairs = if opcode == b's' {
                    let (value, key) = (self.pop()?, self.pop()?);
                    vec![(key, value)]
                } else {
                    self.pairs()?
                };
                let dict = self.top()?;
                let Value::Dict(all) = &mut self.values[dict] else {
                    return Err(self.damaged("an entry for what is no dict"));
                };
                all.extend(pairs);
            }
        }
        Ok(())
    }

    /// REDUCE: a call of one of the known names.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Callable(callable), Value::Tuple(arguments)) = (&self.values[function], &self.values[arguments])
        else {
            return Err(refused("the result of another call"));
        };
        let value = match (*callable, arguments.as_slice()) {
            (Callable::OrderedDict, []) => Value::Dict(Vec::new()),
            // These two are what they are made of.
            (Callable::Size, [only]) if matches!(self.values[*only], Value::Tuple(_)) => {
                self.stack.push(*only);
                return Ok(());
            }
            (Callable::Parameter, [only, ..]) if matches!(self.values[*only], Value::Tensor(_)) => {
                self.stack.push(*only);
                return Ok(());
            }
            (Callable::Device, _) => Value::Device,
            (Callable::Tensor, [storage, offset, shape, strides, _grad, _hooks, more @ ..]) => {
                // The flags say that numbers are to be read negated or conjugated.
                let plain = match more {
                    [] => true,
                    [flags] => match &self.values[*flags] {
                        Value::None => true,
                        Value::Dict(flags) => flags.is_empty(),
                        _ => false,
                    },
                    _ => false,
                };
                if !plain {
                    return Err("the pickle holds a tensor with flags, such as one that is negated; refused".to_owned());
                }
                Value::Tensor(Box::new(self.tensor(*storage, *offset, *shape, *strides)?))
            }
            (callable, _) => return Err(refused(&format!("{callable:?} with {} arguments", arguments.len()))),
        };
        self.push(value);
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<StoredTensor, String> {
        let fail = || self.damaged("a tensor whose description is none");
        let Value::Storage(storage) = &self.values[storage] else { return Err(fail()) };
        let (offset, shape, strides) = (
            self.count(offset).ok_or_else(fail)?,
            self.counts(shape).ok_or_else(fail)?,
            self.counts(strides).ok_or_else(fail)?,
        );
        if shape.len() != strides.len() || shape.len() > MOST_DIMENSIONS {
            return Err(fail());
        }
        let tensor = StoredTensor { storage: storage.clone(), offset, shape, strides };
        match tensor.extent() {
            Some(end) if end <= tensor.storage.count => Ok(tensor),
            _ => Err(format!(
                "a tensor of shape {:?}, strides {:?} and offset {offset} does not lie in its storage of {} numbers",
                tensor.shape, tensor.strides, tensor.storage.count
            )),
        }
    }

    /// BUILD: attributes of a dict, such as a state dict's `_metadata`, are left out.
    fn set_state(&mut self) -> Result<(), String> {
        self.pop()?;
        let object = self.top()?;
        match self.values[object] {
            Value::Dict(_) => Ok(()),
            _ => Err(refused("an object's state to be set")),
        }
    }

    /// BINPERSID: torch names a storage by `("storage", class, key, location, count)`.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let fail = || "the pickle names a storage in another way than `torch.save` does".to_owned();
        let Value::Tuple(parts) = &self.values[id] else { return Err(fail()) };
        let &[word, class, key, _location, count] = parts.as_slice() else { return Err(fail()) };
        let storage = match (&self.values[word], &self.values[class], &self.values[key], self.count(count)) {
            (Value::Text(word), Value::Callable(Callable::Storage(dtype)), Value::Text(key), Some(count))
                if word == "storage" && key.len() <= LONGEST_KEY =>
            {
                Storage { key: key.clone(), dtype, count }
            }
            _ => return Err(fail()),
        };
        self.push(Value::Storage(storage));
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<(), String> {
        let key = self.memo_key(opcode)?;
        let id = *self.memo.get(&key).ok_or_else(|| self.damaged("a reference to nothing"))?;
        self.stack.push(id);
        Ok(())
    }

    fn remember(&mut self, opcode: u8) -> Result<(), String> {
        let key = if opcode == 0x94 { self.memo.len() as u64 } else { self.memo_key(opcode)? };
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn memo_key(&mut self, opcode: u8) -> Result<u64, String> {
        match opcode {
            b'g' | b'p' => {
                let line = std::str::from_utf8(self.line()?).ok().and_then(|text| text.parse().ok());
                line.ok_or_else(|| self.damaged("a reference that is no number"))
            }
            b'h' | b'q' => Ok(self.length(1)? as u64),
            _ => Ok(self.length(4)? as u64),
        }
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// The lowest place on the stack that may be taken.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, String> {
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.copied().ok_or_else(|| self.damaged("a value that is not there"))
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// POP: a mark, if that is on top.
    fn discard(&mut self) -> Result<(), String> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("a mark that is not there"))?;
        Ok(self.stack.split_off(mark))
    }

    fn pairs(&mut self) -> Result<Vec<(Id, Id)>, String> {
        let items = self.pop_mark()?;
        if items.len() % 2 != 0 {
            return Err(self.damaged("a key without a value"));
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn count(&self, id: Id) -> Option<u64> {
        match self.values[id] {
            Value::Int(Some(count)) => u64::try_from(count).ok(),
            _ => None,
        }
    }

    fn counts(&self, id: Id) -> Option<Vec<u64>> {
        match &self.values[id] {
            Value::Tuple(ids) => ids.iter().map(|id| self.count(*id)).collect(),
            _ => None,
        }
    }

    fn sized_text(&mut self, width: usize) -> Result<Value, String> {
        let length = self.length(width)?;
        let bytes = self.take(length)?;
        self.text(bytes)
    }

    fn text(&self, bytes: &[u8]) -> Result<Value, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.damaged("a text that is not UTF-8"))?;
        Ok(Value::Text(text.to_owned()))
    }

    fn decimal(&self, line: &[u8]) -> Result<Value, String> {
        let text = std::str::from_utf8(line).map_err(|_| self.damaged("an integer that is none"))?;
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.damaged("an integer that is none"));
        }
        Ok(Value::Int(text.parse().ok()))
    }

    /// A little-endian number of that many bytes.
    fn length(&mut self, width: usize) -> Result<usize, String> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| self.damaged("a length beyond its end"))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| "the pickle is cut off".to_owned())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| "the pickle is cut off".to_owned())?;
        self.at += end + 1;
        Ok(&rest[..end])
    }

    fn damaged(&self, what: &str) -> String {
        format!("the pickle is damaged: {what}, before byte {}", self.at)
    }
}

impl StoredTensor {
    /// Number of elements; `None` beyond 64 bits.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size))
    }

    /// The number behind the last one in use; `None` where there are more elements than numbers, or beyond 64 bits.
    fn extent(&self) -> Option<u64> {
        let elements = self.elements()?;
        if elements == 0 {
            return Some(0);
        }
        let steps = self.shape.iter().zip(&self.strides);
        let last = steps
            .map(|(size, stride)| (size - 1).checked_mul(*stride))
            .try_fold(self.offset, |sum, step| sum.checked_add(step?))?;
        (elements <= self.storage.count).then_some(last)?.checked_add(1)
    }
}

/// A two's complement number, lowest byte first, of any length.
fn integer(bytes: &[u8]) -> Option<i64> {
    if bytes.len() > 8 {
        return None;
    }
    let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = [fill; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests;
