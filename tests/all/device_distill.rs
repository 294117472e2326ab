//! A run of distillation on a CUDA device, beside the same on the processor.

use std::path::Path;
use std::time::Duration;

use attar::pipeline::pupil::{Desk, OnDevice, OnProcessor, Pupil, course};
use attar::pipeline::teacher::Original;
use attar::pipeline::training::{self, Data, Kept, LearnedText, Record, Run};
use attar::source::Source;
use attar::talk::{Talk, Verbosity};
use attar_distill::{Aim, Decay, DeviceTraining, Optimizer, Schedule, Teacher, Training};
use attar_model::device::{Cuda, TrainingPlan};
use attar_model::{AdamW, Divergence, Keep, Likeness, Precision, Step, Windows};

use crate::machines::on_every_machine;
use crate::place::{Place, fixture};

const CTX: usize = 11;
const STEPS: u64 = 4;
const AIM: Aim = Aim {
    likeness: Likeness { divergence: Divergence::ReverseKl, temperature: 1.5 },
    cross_entropy: 0.2,
    streams: None,
};

/// Tiny random models of one vocabulary, and a text.
struct School {
    student: Source,
    original: Original,
    data: Data,
}

fn optimizer() -> Optimizer {
    let schedule = Schedule { peak: 1e-2, floor: 0.1, warmup_steps: 2, steps: STEPS, decay: Decay::Cosine };
    Optimizer { adamw: AdamW { weight_decay: 0.1, ..AdamW::default() }, schedule, clip: Some(0.5) }
}

impl School {
    fn new() -> Self {
        let golden = fixture("golden/model");
        let tokens = (0..10 * CTX as u32).map(|i| (i * i * 7 + i * 3) % 64).collect();
        Self {
            student: Source::open(&golden.join("llama-1")).unwrap(),
            original: Original::open(&golden.join("gemma2")).unwrap(),
            data: Data {
                windows: Windows::new(CTX, tokens),
                texts: vec![LearnedText { first: 0, learned: 8, weight: 1.0 }],
                held_out: vec![8, 9],
            },
        }
    }

    fn run(&self, pupil: &mut dyn Pupil, steps: u64, state: &Path, record: Record) -> Record {
        let run = Run {
            source: &self.student,
            data: &self.data,
            batch: 3,
            steps,
            part_steps: steps,
            seed: 1,
            state,
            save_every: Duration::from_hours(1),
            fingerprint: "a test".to_owned(),
            log: None,
            talk: Talk::new(Verbosity::Quiet),
        };
        run.train(pupil, record).unwrap().0
    }

    fn on_the_processor(&self, state: &Path) -> Record {
        let Original::Model(teacher) = &self.original else { panic!("a model teaches") };
        let teacher = training::load(teacher).unwrap();
        let how = Step { keep: Keep::Activations, precision: Precision::F32 };
        let training = Training::new(training::load(&self.student).unwrap(), optimizer(), how);
        let teacher = Teacher::Online(&teacher);
        let mut pupil = OnProcessor { training, teacher: &teacher, aim: AIM };
        self.run(&mut pupil, STEPS, state, Record::default())
    }

    fn desk(&self, cuda: &Cuda) -> Desk {
        let course = course(&self.student, &self.original, (3, CTX), Precision::F32).unwrap();
        Desk { cuda: cuda.clone(), plan: TrainingPlan::within(1 << 40, course).unwrap() }
    }

    fn on_the_device(&self, cuda: &Cuda, steps: u64, state: &Path, kept: Option<Kept>) -> Record {
        let desk = self.desk(cuda);
        let student = kept.as_ref().map_or(&self.student, |kept| &kept.student);
        let training = DeviceTraining::new(desk.student::<f32>(student, CTX).unwrap(), optimizer());
        let (training, record) = match kept {
            Some(kept) => kept.resumed(|progress, remembered| training.after(progress, remembered)).unwrap(),
            None => (training, Record::default()),
        };
        let teacher = desk.teacher(&self.original, CTX).unwrap();
        let mut pupil = OnDevice { training, teacher, aim: AIM, at_once: 2 };
        self.run(&mut pupil, steps, state, record)
    }
}

#[test]
fn a_run_on_the_device_goes_the_processors_way_and_taken_up_again_its_own_to_the_bit() {
    on_every_machine(|cuda| {
        let (place, school) = (Place::new(), School::new());
        let truth = school.on_the_processor(&place.at("processor"));
        let found = school.on_the_device(cuda, STEPS, &place.at("whole"), None);
        assert_eq!(found.curve.len(), truth.curve.len());
        for (found, truth) in found.curve.iter().zip(&truth.curve) {
            for (found, truth) in [
                (found.loss, truth.loss),
                (found.held_out_loss, truth.held_out_loss),
                // Its logarithm, since a perplexity is as many times off as that is off.
                (found.held_out_perplexity.map(f64::ln), truth.held_out_perplexity.map(f64::ln)),
            ] {
                assert_eq!(found.is_some(), truth.is_some());
                let (found, truth) = (found.unwrap_or(1.0), truth.unwrap_or(1.0));
                assert!((found - truth).abs() <= 1e-5 * truth, "{found} for {truth}");
            }
        }

        school.on_the_device(cuda, 2, &place.at("half"), None);
        let kept = Kept::open(&place.at("half"), "a test").unwrap();
        school.on_the_device(cuda, STEPS, &place.at("again"), Some(kept));
        for file in ["model.safetensors", "optimizer/model.safetensors"] {
            let read = |folder| std::fs::read(place.at(folder).join(file)).unwrap();
            assert!(read("whole") == read("again"), "{file}");
            assert!(read("whole") != read("half"), "{file}");
        }
    });
}

#[test]
fn what_does_not_fit_onto_the_device_is_refused_in_numbers() {
    let school = School::new();
    let course = course(&school.student, &school.original, (3, CTX), Precision::Bf16).unwrap();
    let error = TrainingPlan::within(1 << 20, course).unwrap_err();
    assert!(error.to_string().contains("of a training step") && error.hint().is_some(), "{error}");
}
