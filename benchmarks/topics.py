"""Reports per second of LLaVA-TA: all topics of all reports in common batches against topic by topic.

    OMP_NUM_THREADS=1 python benchmarks/topics.py [--reports 16] [--rounds 3] [--llm tiny] [--no-save]

Both start from films and masks and end with the same texts, which is checked. "batched" encodes a film and its
segmented versions once and writes the sentences of all topics together (`LlavaTA.generate`); "report by report" does so
for one report at a time; "topic by topic" encodes the film and its segmented part for each topic and writes one
sentence. Nothing is trained here (LoRA and projector are at their start), so sentences run to the limit of `--tokens`,
the length of a typical topic sentence. Rounds are interleaved; times are the processor's seconds of one thread, so that
a busy machine does not count. Results go to results/benchmarks/topics.json.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import interleaved, machine, median, save, table

from rrg_utils.data import load_dataset
from rrg_utils.systems.llava_ta import ALWAYS, Case, Example, LlavaTA, LlavaTAConfig, area_of, read_film, report_of
from rrg_utils.vision.features import encode
from rrg_utils.vision.pretrain import load_encoder
from rrg_utils.vision.segmentation import masked


def topic_by_topic(model, encoder, image, regions, topics, tokens):
    """One report, as a loop over topics would have it."""
    sentences = []
    for topic in topics:
        films = [image]
        if area := area_of(topic):
            films.append(masked(image, np.any([regions[name] for name in area], axis=0)))
        seen = encode(encoder, np.stack(films))
        sentences += model.write([Example(seen[0], "", topic, seen[-1])], tokens)
    return report_of(topics, sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=12, help="longest sentence")
    parser.add_argument("--llm", default="tiny")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(1)

    config = LlavaTAConfig(llm=options.llm, topics="reference")
    model = LlavaTA(config).eval()
    data = load_dataset("phantom", "val", config.size, options.reports)
    regions = [data.phantom(i).regions for i in range(len(data))]
    # The organ and special topics, which every report is asked for.
    told = tuple(type("Told", (), {"topic": topic, "polarity": "absent"}) for topic in ALWAYS)
    encoder = load_encoder(config.encoder, config.size)

    def case(i: int) -> Case:
        return read_film(model, data.images[i], regions[i], ALWAYS)._replace(reference=told)

    ways = {
        "batched": lambda: model.generate([case(i) for i in range(len(data))], options.tokens),
        "report by report": lambda: [model.generate([case(i)], options.tokens)[0] for i in range(len(data))],
        "topic by topic": lambda: [
            topic_by_topic(model, encoder, data.images[i], regions[i], topics[i], options.tokens)
            for i in range(len(data))
        ],
    }
    topics = model.asked([Case(np.zeros(0), {}, told)] * len(data))
    written: dict[str, list] = {}
    seconds = interleaved(ways, options.rounds, time.process_time, written)
    texts = {name: [report.text for report in reports] for name, reports in written.items()}
    same = {name: sum(a == b for a, b in zip(texts[name], texts["batched"], strict=True)) for name in ways}
    slowest = median(seconds["topic by topic"])
    rows = [
        {
            "way": name,
            "reports a second": float(f"{len(data) / median(seconds[name]):.4g}"),
            "times topic by topic": float(f"{slowest / median(seconds[name]):.3g}"),
            "same texts": f"{same[name]} of {len(data)}",
        }
        for name in ways
    ]
    print(table(rows))
    if options.save:
        save(
            "topics",
            {
                "machine": machine("transformers"),
                "reports": len(data),
                "topics per report": len(ALWAYS),
                "tokens per sentence": options.tokens,
                "rounds": options.rounds,
                "processor seconds": {name: [round(s, 3) for s in each] for name, each in seconds.items()},
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
