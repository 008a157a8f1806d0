"""Data mining: clean text piles, find what repeats or contradicts itself, and mine hard negatives. Pure functions over rows."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.mining.cleaning.consistency import Ranks as Ranks
    from acge_lightning.mining.cleaning.consistency import inconsistent_pairs as inconsistent_pairs
    from acge_lightning.mining.cleaning.consistency import positive_ranks as positive_ranks
    from acge_lightning.mining.cleaning.decontaminate import LeakIndex as LeakIndex
    from acge_lightning.mining.cleaning.decontaminate import leak_index as leak_index
    from acge_lightning.mining.cleaning.decontaminate import leaks as leaks
    from acge_lightning.mining.cleaning.deduplicate import near_duplicates as near_duplicates
    from acge_lightning.mining.cleaning.filters import text_issues as text_issues
    from acge_lightning.mining.cleaning.findings import Findings as Findings
    from acge_lightning.mining.cleaning.label_noise import LabelConfidence as LabelConfidence
    from acge_lightning.mining.cleaning.label_noise import doubtful_labels as doubtful_labels
    from acge_lightning.mining.cleaning.label_noise import label_confidence as label_confidence
    from acge_lightning.mining.cleaning.markup import clean_text as clean_text
    from acge_lightning.mining.cleaning.markup import clean_texts as clean_texts
    from acge_lightning.mining.cleaning.opposite_labels import contradictions as contradictions
    from acge_lightning.mining.cleaning.weights import quality as quality
    from acge_lightning.mining.negatives.hard_negatives import HardNegatives as HardNegatives
    from acge_lightning.mining.negatives.hard_negatives import choose_negatives as choose_negatives
    from acge_lightning.mining.negatives.judged_texts import JudgedTexts as JudgedTexts
    from acge_lightning.mining.negatives.judged_texts import combine_judgements as combine_judgements
    from acge_lightning.mining.negatives.mined_folder import mined_rows as mined_rows
    from acge_lightning.mining.negatives.mined_folder import write_mined as write_mined
    from acge_lightning.mining.negatives.miner import mine as mine
    from acge_lightning.mining.negatives.neighbours import DenseNeighbours as DenseNeighbours
    from acge_lightning.mining.negatives.neighbours import LexicalNeighbours as LexicalNeighbours
    from acge_lightning.mining.negatives.positives import headings_and_sections as headings_and_sections
    from acge_lightning.mining.negatives.positives import neighbouring_passages as neighbouring_passages
    from acge_lightning.mining.negatives.positives import titles_and_bodies as titles_and_bodies
    from acge_lightning.mining.negatives.rules import Reason as Reason
    from acge_lightning.mining.negatives.rules import Rules as Rules
    from acge_lightning.mining.negatives.scorers import CrossEncoder as CrossEncoder
    from acge_lightning.mining.negatives.scorers import EncoderScorer as EncoderScorer
    from acge_lightning.mining.negatives.sources import read_sources as read_sources
    from acge_lightning.mining.normalise import duplicate_keys as duplicate_keys
    from acge_lightning.mining.normalise import row_keys as row_keys
    from acge_lightning.mining.normalise import text_keys as text_keys

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    **{
        "cleaning.consistency": "Ranks inconsistent_pairs positive_ranks",
        "cleaning.decontaminate": "LeakIndex leak_index leaks",
        "cleaning.deduplicate": "near_duplicates",
        "cleaning.filters": "text_issues",
        "cleaning.findings": "Findings",
        "cleaning.label_noise": "LabelConfidence doubtful_labels label_confidence",
        "cleaning.markup": "clean_text clean_texts",
        "cleaning.opposite_labels": "contradictions",
        "cleaning.weights": "quality",
        "negatives.hard_negatives": "HardNegatives choose_negatives",
        "negatives.judged_texts": "JudgedTexts combine_judgements",
        "negatives.mined_folder": "mined_rows write_mined",
        "negatives.miner": "mine",
        "negatives.neighbours": "DenseNeighbours LexicalNeighbours",
        "negatives.positives": "headings_and_sections neighbouring_passages titles_and_bodies",
        "negatives.rules": "Reason Rules",
        "negatives.scorers": "CrossEncoder EncoderScorer",
        "negatives.sources": "read_sources",
        "normalise": "duplicate_keys row_keys text_keys",
    },
)
