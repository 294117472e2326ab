//! Real checkpoints, where the machine has them.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::path::{Path, PathBuf};

use attar_checkpoint::{Container, Dtype, TensorInfo, decode_floats, hf, open};

/// The folder of real models, or a visible skip.
fn models() -> Option<PathBuf> {
    let shared = std::env::var_os("ATTAR_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
    let models = shared.join("models");
    if models.is_dir() {
        return Some(models);
    }
    #[expect(clippy::print_stderr, reason = "a skip must be seen")]
    {
        eprintln!("skipped: no real models at {}", models.display());
    }
    None
}

fn floats(model: &dyn Container, name: &str) -> Vec<f32> {
    decode_floats(model.info(name).unwrap().dtype, model.bytes(name).unwrap()).unwrap()
}

#[test]
fn every_real_model_opens_with_as_many_parameters_as_it_is_said_to_have() {
    let Some(models) = models() else { return };
    for (folder, parameters, dtype) in [
        ("books-7m", 7_344_384, Dtype::Bf16),
        ("books-7m-sharded", 7_344_384, Dtype::F32),
        ("books-2m", 2_229_504, Dtype::Bf16),
        ("stories260K", 260_032, Dtype::F32),
        ("llama2xs280K", 279_232, Dtype::F32),
    ] {
        let model = open(&models.join(folder)).unwrap();
        let total: u64 = model.tensors().iter().map(TensorInfo::elements).sum();
        assert_eq!(total, parameters, "{folder}");
        for info in model.tensors() {
            assert_eq!(info.dtype, dtype, "{folder}: {}", info.name);
            let values = floats(&*model, &info.name);
            assert_eq!(values.len() as u64, info.elements());
            assert!(values.iter().all(|x| x.is_finite()), "{folder}: {}", info.name);
        }
        let config = hf::Folder::open(&models.join(folder)).unwrap();
        assert_eq!(config.config["model_type"], "llama");
        assert!(config.generation_config.is_some());
    }
}

#[test]
fn the_sharded_model_rounded_to_bf16_is_the_single_one() {
    let Some(models) = models() else { return };
    let (single, sharded) =
        (open(&models.join("books-7m")).unwrap(), open(&models.join("books-7m-sharded")).unwrap());
    assert_eq!(single.tensors().len(), sharded.tensors().len());
    for info in single.tensors() {
        assert_eq!(Some(&info.shape), sharded.info(&info.name).map(|info| &info.shape), "{}", info.name);
        let rounded = floats(&*sharded, &info.name).into_iter().map(|x| half::bf16::from_f32(x).to_f32());
        assert!(floats(&*single, &info.name).into_iter().eq(rounded), "{}", info.name);
    }
}
