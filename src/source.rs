//! Any checkpoint attar reads, as the weights a model asks for by their Hugging Face names.

mod error;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use attar_checkpoint::compressed_tensors::{self, Packed};
use attar_checkpoint::tokenizer::Tokenizer;
use attar_checkpoint::{Container, Dtype, TensorInfo, Unwritten, decode_floats, gguf, hf, safetensors};
use attar_model::{FilePlace, LoadError, ModelConfig, RowOrder, TensorSpec, Weights};
use attar_quant::{Encoding, IntEncoding, ScaleDtype, encoding_of};
use ndarray::{Array2, ArrayD, Axis, IxDyn};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::diagnostic::{Explain, Failure, Result};
use crate::talk::Talk;
use crate::text::hex;
pub use error::StorageError;

/// Values of a tensor that are worked on together: enough to fill every thread, few enough to stay small.
pub const CHUNK_WEIGHTS: usize = 1 << 21;

/// Values that are decoded together where a tensor is only looked through, perhaps by every thread at once.
const LOOK_WEIGHTS: usize = 1 << 21;

/// An opened model: its shape, its bytes, and the way from one to the other.
#[derive(Debug)]
pub struct Source {
    /// Where it was opened.
    pub path: PathBuf,
    /// Shapes and constants of the model.
    pub config: ModelConfig,
    /// Every tensor the model has, in the order of a forward pass.
    pub specs: Vec<TensorSpec>,
    by_name: HashMap<String, usize>,
    stacked: HashMap<String, FilePlace>, // tensors that are rows of larger ones in the file, by Hugging Face name
    opened: Opened,
}

#[derive(Debug)]
enum Opened {
    Folder { files: Box<dyn Container>, folder: hf::Folder, packed: Option<Packed> },
    Gguf(gguf::File),
}

impl Opened {
    /// Where a tensor lies that has not a tensor of its name to itself.
    fn stacked(&self, spec: &TensorSpec) -> Option<FilePlace> {
        match self {
            Self::Gguf(_) => spec.expert.map(|_| spec.gguf_place()),
            Self::Folder { files, .. } => {
                let is_there = |place: &FilePlace| files.info(&place.name).is_some();
                spec.hf_places().into_iter().find(is_there).filter(|place| place.name != spec.name)
            }
        }
    }
}

/// How a tensor's numbers are stored.
enum Stored<'a> {
    Floats(&'a TensorInfo),
    Blocks(&'a TensorInfo, &'static dyn Encoding),
    Packed(IntEncoding),
}

/// What is said of a configuration that describes no model attar can run.
const WHAT_RUNS: &str = "attar runs the architectures and options it names here, and no others yet; if this model \
     should be one of them, its configuration is damaged: get it again";

/// What is said of a model that does not open, where nothing more special is.
const WHAT_A_MODEL_IS: &str = "a model is a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a .gguf \
     file; if this was one, it is damaged or cut short: download or copy it again";

impl Source {
    /// Opens a Hugging Face folder or a `.gguf` file and checks that every tensor of the model is there.
    ///
    /// # Errors
    /// Files that are missing, damaged or lying; an unknown architecture; a tensor that is missing, has another
    /// shape than the configuration says or a type that cannot be decoded.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_inner(path)
            .hint(|| WHAT_A_MODEL_IS)
            .doing(|| format!("while opening `{}`", path.display()))
    }

    fn open_inner(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Failure::new("there is no such file or folder").hint("check the path for a misprint"));
        }
        let (config, opened) = if path.is_dir() {
            // Of a folder with neither weights nor a config, the missing weights say more.
            let files = safetensors::open(path)?;
            let folder = hf::Folder::open(path)?;
            let config = ModelConfig::from_hf(&folder.config).hint(|| WHAT_RUNS)?;
            let packed = compressed_tensors::parse(&folder.config)?;
            (config, Opened::Folder { files: Box::new(files), folder, packed })
        } else {
            let file = gguf::File::open(path)?;
            (ModelConfig::from_gguf(&file).hint(|| WHAT_RUNS)?, Opened::Gguf(file))
        };
        Self::of(path, config, opened)
    }

    /// A folder of floats before it is written: what this `config.json` and these tensors will make it. Its numbers cannot be
    /// loaded.
    ///
    /// # Errors
    /// As [`open`](Self::open) of the folder once it is there.
    pub fn unwritten(path: &Path, config: serde_json::Value, tensors: Vec<TensorInfo>) -> Result<Self> {
        let files = Box::new(Unwritten::new(path, tensors)?);
        let folder = hf::Folder { path: path.to_owned(), config, generation_config: None };
        let config = ModelConfig::from_hf(&folder.config)?;
        Self::of(path, config, Opened::Folder { files, folder, packed: None })
    }

    /// Checks that every tensor of the model is there.
    fn of(path: &Path, config: ModelConfig, opened: Opened) -> Result<Self> {
        let specs = config.tensors();
        let by_name = specs.iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect();
        let stacked =
            specs.iter().filter_map(|spec| Some((spec.name.clone(), opened.stacked(spec)?))).collect();
        let source = Self { path: path.to_owned(), config, specs, by_name, stacked, opened };
        source.specs.iter().try_for_each(|spec| source.check_tensor(spec))?;
        Ok(source)
    }

    fn check_tensor(&self, spec: &TensorSpec) -> Result<()> {
        let stored = self
            .stored(spec)
            .hint(|| "the checkpoint is incomplete or of a kind attar does not read, or its configuration is another model's")?;
        let found = match stored {
            Stored::Floats(info) | Stored::Blocks(info, _) => &info.shape,
            // Its tensors have just been held to its shape, and that to nothing yet.
            Stored::Packed(_) => &self.packed(spec)?.map_or_else(Vec::new, |(_, shape)| shape.to_vec()),
        };
        let (name, expected) = match self.stacked.get(&spec.name) {
            Some(place) => (&place.name, &place.shape),
            None => (&spec.name, &spec.shape),
        };
        if found == expected {
            return Ok(());
        }
        Err(Failure::new(format!("tensor `{name}` has shape {found:?}, the configuration says {expected:?}"))
            .hint("the weights and the configuration belong to different models"))
    }

    fn container(&self) -> &dyn Container {
        match &self.opened {
            Opened::Folder { files, .. } => &**files,
            Opened::Gguf(file) => file,
        }
    }

    /// The name of a tensor in the file, or of the larger one whose rows it is.
    pub fn stored_name<'a>(&'a self, spec: &'a TensorSpec) -> &'a str {
        match (self.stacked.get(&spec.name), &self.opened) {
            (Some(place), _) => &place.name,
            (None, Opened::Folder { .. }) => &spec.name,
            (None, Opened::Gguf(_)) => &spec.gguf_name,
        }
    }

    fn stored(&self, spec: &TensorSpec) -> std::result::Result<Stored<'_>, StorageError> {
        let name = self.stored_name(spec);
        let cannot =
            |stored: &dyn ToString| StorageError::Type { name: name.to_owned(), stored: stored.to_string() };
        if let Some(info) = self.container().info(name) {
            return match info.dtype {
                Dtype::Ggml(ggml) => encoding_of(ggml)
                    .map(|encoding| Stored::Blocks(info, encoding))
                    .ok_or_else(|| cannot(&ggml)),
                dtype if dtype.is_float() => Ok(Stored::Floats(info)),
                other => Err(cannot(&other)),
            };
        }
        let Some((scheme, [_, in_features])) = self.packed(spec)? else {
            return Err(StorageError::Missing { name: name.to_owned() });
        };
        let scale = compressed_tensors::Names::of(name).and_then(|names| self.container().info(&names.scale));
        let scale = match scale.map(|info| info.dtype) {
            Some(Dtype::F16) => ScaleDtype::F16,
            Some(Dtype::Bf16) => ScaleDtype::Bf16,
            Some(Dtype::F32) => ScaleDtype::F32,
            other => return Err(cannot(&format!("integers with scales of type {other:?}"))),
        };
        let (bits, group_size) = (scheme.num_bits, scheme.group_size.unwrap_or(in_features));
        if !(2..=8).contains(&bits) {
            return Err(cannot(&format!("integers of {bits} bit")));
        }
        let encoding = if scheme.symmetric {
            IntEncoding::symmetric(bits, group_size)
        } else {
            IntEncoding::asymmetric(bits, group_size)
        };
        Ok(Stored::Packed(encoding.with_scale(scale)))
    }

    /// Scheme and shape of a weight that is stored as packed integers.
    fn packed(
        &self,
        spec: &TensorSpec,
    ) -> std::result::Result<Option<(compressed_tensors::Scheme, [usize; 2])>, StorageError> {
        match &self.opened {
            Opened::Folder { packed: Some(packed), files, .. } => Ok(packed.find(&**files, &spec.name)?),
            _ => Ok(None),
        }
    }

    /// Rows of a tensor as they lie in the file, decoded; a vector is rows of one.
    fn decode(&self, spec: &TensorSpec, rows: Range<usize>) -> std::result::Result<Vec<f32>, StorageError> {
        let name = self.stored_name(spec);
        let [count, cols] = rows_and_cols(spec);
        if rows.end > count {
            return Err(StorageError::Row { name: name.to_owned(), row: rows.end - 1, rows: count });
        }
        match self.stored(spec)? {
            Stored::Floats(info) => Ok(decode_floats(info.dtype, self.tensor_bytes(spec, &rows)?)?),
            Stored::Blocks(_, encoding) => {
                let values = encoding.unpack(self.tensor_bytes(spec, &rows)?, rows.len(), cols)?;
                Ok(values.into_raw_vec_and_offset().0)
            }
            Stored::Packed(encoding) => {
                let names = compressed_tensors::Names::of(name)
                    .ok_or_else(|| StorageError::Missing { name: name.to_owned() })?;
                // Zero points of 32 rows fill whole words whatever their bits.
                let around = rows.start / 32 * 32..count.min(rows.end.next_multiple_of(32));
                let part = |name: &str, rows_of: usize| self.row_bytes(name, rows_of, &around);
                let zero_point = if encoding.is_symmetric() {
                    &[][..]
                } else {
                    let words = |rows: usize| (rows * usize::from(encoding.bits())).div_ceil(32);
                    self.row_bytes(
                        &names.zero_point,
                        words(count),
                        &(words(around.start)..words(around.end)),
                    )?
                };
                let bytes =
                    IntEncoding::join(part(&names.packed, count)?, part(&names.scale, count)?, zero_point);
                let values = encoding.unpack(&bytes, around.len(), cols)?.into_raw_vec_and_offset().0;
                let (skip, len) = ((rows.start - around.start) * cols, rows.len() * cols);
                Ok(if values.len() == len { values } else { values[skip..skip + len].to_vec() })
            }
        }
    }

    /// Lets the memory go that the file's bytes of a tensor are mapped to: it has been decoded.
    fn release(&self, spec: &TensorSpec) {
        for name in self.stored_parts(spec) {
            self.container().release(&name);
        }
    }

    /// The bytes of some rows of one of the model's tensors.
    fn tensor_bytes(
        &self,
        spec: &TensorSpec,
        rows: &Range<usize>,
    ) -> std::result::Result<&[u8], StorageError> {
        let (first, count) = self.rows_in_file(spec);
        self.row_bytes(self.stored_name(spec), count, &(first + rows.start..first + rows.end))
    }

    /// The bytes of some rows of one of the file's tensors, of `count` rows.
    fn row_bytes(
        &self,
        name: &str,
        count: usize,
        rows: &Range<usize>,
    ) -> std::result::Result<&[u8], StorageError> {
        let bytes = self.container().bytes(name)?;
        let per_row = bytes.len() / count.max(1);
        Ok(&bytes[rows.start * per_row..rows.end * per_row])
    }

    /// The first row of a tensor in what is stored under its name in the file, and the rows of all that.
    fn rows_in_file(&self, spec: &TensorSpec) -> (usize, usize) {
        match self.stacked.get(&spec.name) {
            Some(FilePlace { first_row, shape, .. }) => {
                (*first_row, shape[..shape.len() - 1].iter().product())
            }
            None => (0, rows_and_cols(spec)[0]),
        }
    }

    /// Shows `look` the numbers of a tensor, in the order of the file, some rows at a time.
    fn look_through(
        &self,
        spec: &TensorSpec,
        mut look: impl FnMut(&[f32]),
    ) -> std::result::Result<(), StorageError> {
        let [rows, cols] = rows_and_cols(spec);
        let step = (LOOK_WEIGHTS / cols.max(1)).max(32) / 32 * 32;
        for start in (0..rows).step_by(step) {
            look(&self.decode(spec, start..rows.min(start + step))?);
            self.release(spec);
        }
        Ok(())
    }

    /// SHA-256 of a tensor's numbers as little-endian f32, in the order of the file.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn decoded_sha256(&self, spec: &TensorSpec) -> std::result::Result<String, StorageError> {
        let mut hash = Sha256::new();
        self.look_through(spec, |values| hash_floats(&mut hash, values))?;
        Ok(hex(&hash.finalize()))
    }

    /// SHA-256 that stands for all weights: over the name, type, shape and SHA-256 of the stored bytes of every tensor, in
    /// the order of a forward pass. How a model is cut into files changes nothing, another container does.
    ///
    /// # Errors
    /// A tensor that is missing.
    pub fn sha256(&self, talk: Talk) -> std::result::Result<String, StorageError> {
        // Few enough bytes that the rate is seen to move, enough that telling costs nothing.
        const STEP: usize = 16 << 20;
        // Experts may share a tensor.
        let mut seen = HashSet::new();
        let parts = self.specs.iter().flat_map(|spec| self.stored_parts(spec));
        let parts: Vec<String> = parts.filter(|name| seen.insert(name.clone())).collect();
        let errand = talk.errand("hashing", self.bytes(), "bytes");
        let lines: Vec<String> = parts
            .par_iter()
            .map(|name| {
                let info = self.container().info(name);
                let info = info.ok_or_else(|| StorageError::Missing { name: name.clone() })?;
                let mut hash = Sha256::new();
                for bytes in self.container().bytes(name)?.chunks(STEP) {
                    hash.update(bytes);
                    errand.step(bytes.len() as u64, "");
                }
                self.container().release(name);
                let hash = hex(&hash.finalize());
                Ok(format!("{name} {} {:?} {hash}\n", info.dtype, info.shape))
            })
            .collect::<std::result::Result<_, StorageError>>()?;
        errand.done();
        Ok(hex(&Sha256::digest(lines.concat())))
    }

    /// The file's tensors that hold one of the model's.
    fn stored_parts(&self, spec: &TensorSpec) -> Vec<String> {
        let name = self.stored_name(spec);
        let packed = compressed_tensors::Names::of(name)
            .filter(|_| matches!(self.stored(spec), Ok(Stored::Packed(_))));
        match packed {
            None => vec![name.to_owned()],
            Some(names) => [names.packed, names.scale, names.zero_point]
                .into_iter()
                .filter(|name| self.container().info(name).is_some())
                .collect(),
        }
    }

    /// Refuses weights that are NaN or infinite.
    ///
    /// # Errors
    /// The first such tensor, with its count.
    pub fn check_finite(&self, mut looked_at: impl FnMut(&TensorSpec)) -> Result<()> {
        for spec in &self.specs {
            let mut bad = 0;
            self.look_through(spec, |values| {
                bad += values
                    .par_chunks(1 << 16)
                    .map(|part| part.iter().filter(|x| !x.is_finite()).count())
                    .sum::<usize>();
            })?;
            if bad > 0 {
                let (name, total) = (&spec.name, spec.len());
                return Err(Failure::new(format!("{bad} of the {total} values of `{name}` are NaN or infinite"))
                    .hint("the checkpoint is damaged: download it again, or convert it again from where it was trained"));
            }
            looked_at(spec);
        }
        Ok(())
    }

    /// The float type a tensor has, or the smallest that holds what it decodes to.
    pub fn float_dtype(&self, spec: &TensorSpec) -> Dtype {
        match self.stored(spec) {
            Ok(Stored::Floats(info)) => match info.dtype {
                Dtype::F8E4m3 | Dtype::F8E5m2 => Dtype::Bf16,
                Dtype::F64 => Dtype::F32,
                kept => kept,
            },
            _ => Dtype::F32,
        }
    }

    /// The float type of the model's matrices.
    pub fn matrix_dtype(&self) -> Dtype {
        self.specs.iter().find(|spec| spec.tap.is_some()).map_or(Dtype::F32, |spec| self.float_dtype(spec))
    }

    /// The storage type of most weights, for people.
    pub fn main_type(&self) -> String {
        let mut weights = std::collections::BTreeMap::<String, usize>::new();
        for spec in &self.specs {
            *weights.entry(self.stored_type(spec)).or_default() += spec.len();
        }
        weights.into_iter().max_by_key(|(_, weights)| *weights).map_or_else(String::new, |(name, _)| name)
    }

    /// Whether the numbers are already those of a quantized model.
    pub fn is_quantized(&self) -> bool {
        self.specs.iter().any(|spec| matches!(self.stored(spec), Ok(Stored::Blocks(..) | Stored::Packed(_))))
    }

    /// What the model is called: the name of its folder, or of its file without the ending.
    pub fn name(&self) -> String {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        if self.is_gguf() {
            return gguf::split::stem_of(&path);
        }
        path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The GGUF file, where the model is one.
    pub fn gguf(&self) -> Option<&gguf::File> {
        match &self.opened {
            Opened::Gguf(file) => Some(file),
            Opened::Folder { .. } => None,
        }
    }

    /// Whether `path` is what the model is read from, or a part of it.
    pub fn is_at(&self, path: &Path) -> bool {
        let Ok(path) = path.canonicalize() else { return false };
        let parts = self.gguf().map_or(&[][..], gguf::File::parts);
        std::iter::once(&self.path).chain(parts).any(|own| own.canonicalize().is_ok_and(|own| own == path))
    }

    /// Whether the model is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.opened, Opened::Gguf(_))
    }

    /// Bytes of all weight tensors as they are stored, scales and zero points included.
    pub fn bytes(&self) -> u64 {
        self.specs.iter().map(|spec| self.stored_bytes(spec)).sum()
    }

    /// Bytes of one tensor as it is stored.
    pub fn stored_bytes(&self, spec: &TensorSpec) -> u64 {
        let [rows, cols] = rows_and_cols(spec);
        match self.stored(spec) {
            Ok(Stored::Floats(info) | Stored::Blocks(info, _)) => {
                info.bytes / self.rows_in_file(spec).1.max(1) as u64 * rows as u64
            }
            Ok(Stored::Packed(encoding)) => encoding.bytes_for(rows, cols) as u64,
            Err(_) => 0,
        }
    }

    /// Elements of all weight tensors.
    pub fn parameters(&self) -> u64 {
        self.specs.iter().map(|spec| spec.len() as u64).sum()
    }

    /// The name of a tensor's storage type, for people.
    pub fn stored_type(&self, spec: &TensorSpec) -> String {
        match self.stored(spec) {
            Ok(Stored::Floats(info) | Stored::Blocks(info, _)) => info.dtype.to_string(),
            Ok(Stored::Packed(encoding)) => encoding.name().into_owned(),
            Err(_) => "unknown".to_owned(),
        }
    }

    /// The Hugging Face folder, where the model is one.
    pub fn folder(&self) -> Option<&hf::Folder> {
        match &self.opened {
            Opened::Folder { folder, .. } => Some(folder),
            Opened::Gguf(_) => None,
        }
    }

    /// The tokenizer that came with the model.
    ///
    /// # Errors
    /// No tokenizer, one that cannot be read, or one with more tokens than the embedding has rows.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let opened = match &self.opened {
            Opened::Folder { .. } => Tokenizer::from_folder(&self.path),
            Opened::Gguf(file) => Tokenizer::from_gguf(file),
        };
        let tokenizer = opened
            .doing(|| format!("while reading the tokenizer of `{}`", self.path.display()))
            .hint(|| "get the tokenizer's files of the original model again")?
            .limited_to(self.config.vocab_size);
        let (tokens, rows) = (tokenizer.vocab_size(), self.config.vocab_size);
        if tokens > rows {
            return Err(Failure::new(format!(
                "the tokenizer has {tokens} tokens, the embedding {rows} rows"
            ))
            .hint("the tokenizer belongs to another model"));
        }
        Ok(tokenizer)
    }

    fn spec(&self, name: &str) -> std::result::Result<&TensorSpec, StorageError> {
        let unknown = || StorageError::Unknown { name: name.to_owned() };
        self.by_name.get(name).map(|&index| &self.specs[index]).ok_or_else(unknown)
    }

    /// How the file orders the rows of a tensor.
    pub fn row_order(&self, spec: &TensorSpec) -> RowOrder {
        if self.is_gguf() { spec.row_order } else { RowOrder::AsIs }
    }
}

impl Weights for Source {
    fn load(&self, name: &str) -> std::result::Result<ArrayD<f32>, LoadError> {
        let spec = self.spec(name)?;
        let rows = spec.shape[0];
        let mut values = self.decode(spec, 0..rows)?;
        if self.is_gguf() {
            spec.gguf_adds.from_gguf(&mut values);
        }
        let values = ArrayD::from_shape_vec(IxDyn(&spec.shape), values)?;
        self.release(spec);
        Ok(match self.row_order(spec) {
            RowOrder::AsIs => values,
            order @ RowOrder::RopeInterleaved { .. } => values.select(Axis(0), &order.from_gguf(rows)),
        })
    }

    fn load_rows(&self, name: &str, rows: &[usize]) -> std::result::Result<Array2<f32>, LoadError> {
        let spec = self.spec(name)?;
        let [count, cols] = rows_and_cols(spec);
        let stored = match self.row_order(spec) {
            RowOrder::AsIs => None,
            order @ RowOrder::RopeInterleaved { .. } => Some(order.from_gguf(count)),
        };
        let at = |&row: &usize| {
            stored.as_ref().map_or(Some(row), |stored| stored.get(row).copied()).unwrap_or(count)
        };
        let at: Vec<usize> = rows.iter().map(at).collect();
        let mut values = vec![0.0; rows.len() * cols];
        let (mut runs, mut rest) = (Vec::new(), &mut values[..]);
        for run in at.chunk_by(|row, next| row + 1 == *next) {
            let (to, further) = rest.split_at_mut(run.len() * cols);
            runs.push((run[0]..run[0] + run.len(), to));
            rest = further;
        }
        runs.into_par_iter().try_for_each(|(run, to)| {
            to.copy_from_slice(&self.decode(spec, run)?);
            if self.is_gguf() {
                spec.gguf_adds.from_gguf(to);
            }
            Ok::<_, StorageError>(())
        })?;
        self.release(spec);
        Ok(Array2::from_shape_vec((rows.len(), cols), values)?)
    }

    fn read_ahead(&self, name: &str) {
        // Of a tensor that experts share the first of them has all read.
        if let Some(spec) = self.spec(name).ok().filter(|spec| self.rows_in_file(spec).0 == 0) {
            self.stored_parts(spec).iter().for_each(|name| self.container().read_ahead(name));
        }
    }

    fn load_range(&self, name: &str, rows: Range<usize>) -> std::result::Result<Array2<f32>, LoadError> {
        let spec = self.spec(name)?;
        if self.row_order(spec) != RowOrder::AsIs {
            return self.load_rows(name, &rows.collect::<Vec<_>>());
        }
        let [_, cols] = rows_and_cols(spec);
        let values = self.decode(spec, rows.clone())?;
        self.release(spec);
        Ok(Array2::from_shape_vec((rows.len(), cols), values)?)
    }

    fn bf16_bytes(&self, name: &str) -> Option<&[u8]> {
        let spec = self.spec(name).ok().filter(|spec| spec.is_matrix())?;
        match self.stored(spec).ok()? {
            Stored::Floats(info) if info.dtype == Dtype::Bf16 && self.row_order(spec) == RowOrder::AsIs => {
                self.tensor_bytes(spec, &(0..spec.shape[0])).ok()
            }
            _ => None,
        }
    }

    fn let_go(&self, name: &str) {
        if let Ok(spec) = self.spec(name) {
            self.release(spec);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }
}

/// Rows and columns; a vector is rows of one.
pub fn rows_and_cols(spec: &TensorSpec) -> [usize; 2] {
    [spec.shape[0], spec.shape[1..].iter().product()]
}

/// Adds numbers to a hash as little-endian f32.
pub fn hash_floats(hash: &mut Sha256, values: &[f32]) {
    let mut bytes = [0; 4096];
    for part in values.chunks(bytes.len() / 4) {
        for (to, value) in bytes.as_chunks_mut().0.iter_mut().zip(part) {
            *to = value.to_le_bytes();
        }
        hash.update(&bytes[..part.len() * 4]);
    }
}
