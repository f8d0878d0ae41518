"""Finding mentions in report text, each asserted as present, absent or uncertain: our own rules, no model.

Everything is a table. `FINDINGS` holds what is named directly ("pleural effusion"). `SUBJECTS`, `PREDICATES` and
`PAIRS` hold what is said about a structure ("the heart and mediastinum are normal", "enlarged cardiac silhouette").
`CUES` holds negation, hedges and what ends their reach, in the manner of NegEx (Chapman et al. 2001). In the tables a
space stands for any white space; matching ignores ASCII case.

Reach of a cue. A sentence is cut into clauses by STOP cues ("but", ";", a comma before a new verb, ...). A NEG_PRE cue
reaches forward to the end of its clause, so "no A, B, or C" denies all three; a NEG_POST cue ("is not seen") reaches
back to the previous verb. A hedge reaches as far as a negation, but never over a comma. EITHER cues ("versus", "or")
make only their close neighbours uncertain. A PSEUDO cue ("no change in") looks like a negation and has no effect; a
mention in reach of a HYPOTHETICAL cue ("history of", "could obscure") is dropped. A negation wins over a hedge ("no
opacity to suggest pneumonia" denies both).
"""

import re
from functools import lru_cache
from typing import NamedTuple

from rrg_utils.errors import RRGError

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"

# (finding, usual anatomy, pattern); where two match at one place the earlier rule wins.
FINDINGS = (
    ("", "", r"(?:bone|bony|mineral|soft tissue|osseous) (?:mineral )?densit\w+"),  # no finding: keeps "density" off
    ("hydropneumothorax", "pleura", r"(?:hydro|hemo)pneumothora\w+"),
    ("pneumothorax", "pleura", r"(?:tension )?pneumothor\w+|pneumo thorax|pleural air"),
    ("pericardial effusion", "heart", r"pericardial (?:effusion|fluid)s?"),
    (
        "pleural effusion",
        "pleura",
        r"(?:pleural )?effusions?|pleural (?:fluid|collections?)|hemothora\w+|hydrothora\w+|fluid (?:in|within|"
        r"along|tracking)(?: \w+){0,2} fissures?",
    ),
    (
        "pleural thickening",
        "pleura",
        r"pleural(?: \w+)?(?:(?: and| or|/)(?: \w+)?)? (?:thickening|scar\w*|reaction|disease|plaques?|"
        r"calcifications?|fibrosis)|fibrothora\w+|apical (?:capping|cap|thickening)|pleuroparenchymal scarring|"
        r"thickening of(?: \w+){0,4} (?:pleura|fissures?)|fissural thickening",
    ),
    ("blunted costophrenic angle", "pleura", r"blunt\w*(?: of)?(?: \w+){0,4} (?:costophrenic|sulc\w+|cp angle)\w*"),
    (
        "pneumonia",
        "lung",
        r"(?:broncho)?pneumonias?|infection|infectious(?: process| disease| etiology)?|pneumonitis",
    ),
    ("consolidation", "lung", r"consolidat\w+"),
    ("atelectasis", "lung", r"atelecta\w+|(?:lobar|lobe|lung) collapse|collapse of(?: \w+){0,3} (?:lobe|lung)"),
    ("volume loss", "lung", r"(?:loss of|decreased) (?:lung )?volume|volume loss"),
    ("soft tissue edema", "chest wall", r"soft tissue (?:edema|swelling)"),
    ("edema", "lung", r"(?:pulmonary |interstitial |alveolar )*o?edema|fluid overload|kerley \w+(?: lines)?"),
    (
        "vascular congestion",
        "lung",
        r"(?:pulmonary )?(?:vascular|venous)(?: \w+)? (?:congestion|engorgement|prominence|redistribution|"
        r"fullness)|(?:pulmonary|vascular) congestion|congestive changes|cephalization|(?:prominen\w+|"
        r"indistinct\w*|engorge\w+|congested)(?: of)?(?: \w+){0,2} (?:vascul\w+|vessels)|engorged",
    ),
    ("heart failure", "heart", r"(?:congestive )?heart failure|chf|cardiac (?:failure|decompensation)"),
    (
        "calcified granuloma",
        "lung",
        r"calcified(?: \w+){0,4} (?:granulom\w+(?: infection| disease)?|nodes?|lesions?)|(?:healed |old |prior |"
        r"remote |chronic |calcified )*granulomat\w+(?: \w+)?|granulom\w+|histoplasmosis|ghon \w+|"
        r"calcific densit\w+",
    ),
    ("nodular opacity", "lung", r"(?:reticulo|micro)?nodular(?: \w+)? (?:opacit\w+|densit\w+)"),
    (
        "nodule",
        "lung",
        r"(?:micro)?nodul(?:es?|ar(?: \w+)? (?:lesions?|foc\w+))|nodularity|nodular|(?:lung|pulmonary|"
        r"cavitary) lesions?",
    ),
    ("mass", "lung", r"mass(?:es)?(?![\w-])|neoplas\w+|malignan\w+|tumou?rs?|carcinoma|metasta\w+|lung cancer"),
    ("airspace disease", "lung", r"air\W*space(?: \w+)? diseases?|alveolar (?:disease|process)"),
    ("infiltrate", "lung", r"infiltrat\w+"),
    (
        "interstitial opacity",
        "lung",
        r"interstitial(?: \w+){0,2} (?:markings?|opacit\w+|prominence|pattern|thickening|disease|changes?|"
        r"densit\w+|process|infiltrat\w+|abnormalit\w+)|(?:increased|prominen\w+|coarse\w*|"
        r"thickened)(?: \w+){0,3} (?:markings|interstitium)|reticul\w+(?: \w+){0,2} (?:opacit\w+|markings|pattern|"
        r"densit\w+)|reticulation|(?:peri)?bronchial (?:wall )?(?:thickening|cuffing)",
    ),
    (
        "opacity",
        "lung",
        r"(?:air\W*space |ground\W*glass )?(?:opacit\w+|opacif\w+)|densit(?:y|ies)|haz(?:e|y|iness)|silhouetting",
    ),
    (
        "scar",
        "lung",
        r"(?:parenchymal |pulmonary |pleuroparenchymal )?(?:scar\w*|fibro(?:sis|tic)(?: changes?)?)|cicatri\w+",
    ),
    (
        "emphysema",
        "lung",
        r"emphysem\w+(?: changes?)?|copd|chronic obstructive(?: \w+){0,2} disease|bullous(?: \w+)?|bullae?|"
        r"air\W?trapping",
    ),
    (
        "hyperinflation",
        "lung",
        r"(?:hyper|over)\W?(?:inflat|expan|distend|disten|aerat|lucen)\w*|"
        r"flatten\w*(?: of)?(?: \w+){0,3} (?:hemi\W?)?diaphragms?",
    ),
    (
        "low lung volumes",
        "lung",
        r"(?:low|small|decreased|diminished|reduced|shallow)(?: \w+)? (?:lung volumes?|inspirat\w+|volumes)|"
        r"hypo\W?(?:inflat|expan|ventilat|aerat)\w*|poor inspirat\w+|(?:low|shallow) inspirat\w+",
    ),
    ("bronchiectasis", "lung", r"bronchiecta\w+"),
    ("cavity", "lung", r"cavit(?:y|ies|ation)"),
    ("subcutaneous emphysema", "chest wall", r"subcutaneous (?:emphysema|air|gas)"),
    ("free air", "abdomen", r"pneumoperitoneum|free(?: \w+)? (?:air|gas)"),
    ("pneumomediastinum", "mediastinum", r"pneumomediastin\w+|mediastinal (?:air|emphysema)"),
    ("cardiomegaly", "heart", r"cardiomegaly|cardiac enlargement|megalocardia|cardiac prominence"),
    (
        "hilar enlargement",
        "mediastinum",
        r"(?:enlarge\w*|prominen\w+|full\w*)(?: of)?(?: \w+){0,3} (?:peri)?hil(?:ar|a|um)(?: (?:regions?|contours?|"
        r"shadows?|vessels|vasculature))?|(?:peri)?hil(?:ar|a|um)(?: \w+)? (?:prominence|enlargement|fullness)",
    ),
    ("lymphadenopathy", "mediastinum", r"(?:lymph)?adenopathy|enlarged(?: \w+)? lymph nodes"),
    ("hiatal hernia", "mediastinum", r"(?:hiatal |hiatus |diaphragmatic )?hernias?"),
    (
        "mediastinal shift",
        "mediastinum",
        r"(?:mediastinal|tracheal) (?:shift|deviation)|shift of(?: \w+){0,2} mediastin\w+",
    ),
    (
        "calcified aorta",
        "aorta",
        r"(?:calcif|atheroscler|arterioscler|atheromat)\w+(?: \w+){0,5} (?:aort\w+|arch)|atheroscler\w+(?: \w+)?|"
        r"arterioscler\w+",
    ),
    ("aortic aneurysm", "aorta", r"aneurysm\w*(?: dilat\w+)?"),
    ("tortuous aorta", "aorta", r"(?:tortuo|ectat|ectas|unfold|elongat|uncoil)\w+(?: \w+){0,5} (?:aort\w+|arch)"),
    (
        "scoliosis",
        "spine",
        r"(?:dextro|levo|kypho)?\W?(?:scoliosis|scoliotic)(?: \w+)?|(?:levo|dextro)curvature|curvature",
    ),
    ("kyphosis", "spine", r"kypho(?:sis|tic)"),
    (
        "vertebral deformity",
        "spine",
        r"compression(?: \w+)? (?:deformit\w+|changes?)|wedg(?:e|ing)(?: \w+)?(?: deformit\w+)?|(?:loss of|"
        r"decreased)(?: \w+)* height",
    ),
    ("fracture", "bone", r"(?:micro)?fractur\w+"),
    ("dislocation", "bone", r"(?:dis|sub\W?)(?:location|luxation)s?|subluxation"),
    (
        "degenerative change",
        "spine",
        r"degenerat\w+(?: \w+)?(?: changes?| diseases?)?|spondylo(?:sis|tic)(?: changes?)?|osteophy\w+|"
        r"(?:osteo)?arthr(?:itis|itic|osis|opathy)(?: changes?)?|spurr?(?:ing|s)?|endplate(?: \w+)? changes?|dish|"
        r"syndesmophyt\w+|hyperostosis",
    ),
    ("osteopenia", "bone", r"osteopeni\w+|osteoporo\w+|(?:bony |bone )?demineraliz\w+"),
    (
        "bone lesion",
        "bone",
        r"(?:lytic|blastic|sclerotic|destructive|bony?|osseous) (?:\w+ )?(?:lesions?|foci|focus)",
    ),
    (
        "elevated diaphragm",
        "diaphragm",
        r"elevat\w+(?: of)?(?: \w+){0,3} (?:hemi\W?)?diaphragms?|eventration|"
        r"(?:hemi\W?)?diaphragm(?:atic)? elevation",
    ),
    ("pulmonary hypertension", "lung", r"pulmonary (?:arterial )?hypertension"),
    (
        "pacemaker",
        "device",
        r"pace\W?makers?|(?:icd|aicd)\b|defibrillators?|pacer|pacing (?:leads?|wires?|device)|generator",
    ),
    (
        "catheter",
        "device",
        r"catheters?|picc(?: lines?)?|(?:central|venous|subclavian|jugular|ij|cvc)(?: \w+)? (?:lines?|access)|"
        r"port\W?a\W?caths?|porta?caths?|mediport|infusion ports?|chest ports?|port(?= (?:is|in|with|tip|overl|"
        r"remain|noted|terminat|catheter|placed))|swan\W?ganz|tips?(?: \w+){0,3} (?:svc|superior vena cava|"
        r"cavoatrial|right atrium)",
    ),
    (
        "tube",
        "device",
        r"(?:endotracheal|et|ng|nasogastric|orogastric|enteric|feeding|dobhoff|gastric|chest|thoracostomy|"
        r"tracheostomy|drainage) tubes?|tracheostomy|thoracostomy|intubat\w+|tubes?\b|drains?\b",
    ),
    (
        "sternotomy",
        "device",
        r"(?:median )?sternotomy(?: (?:wires?|sutures?))?|sternal (?:wires?|sutures?|fixation)|cabg|"
        r"bypass graft\w*",
    ),
    (
        "surgical clips",
        "device",
        r"(?:surgical |mediastinal |cholecystectomy |vascular |axillary |metallic |hilar |operative )*(?:clips?|"
        r"staples?|sutures?|suture (?:line|material))",
    ),
    (
        "foreign body",
        "chest wall",
        r"(?:metallic |radiopaque |retained )*(?:foreign (?:bod\w+|objects?)|(?:bullet|shrapnel)(?: fragments?)?|"
        r"pierc\w+)|metallic (?:densit\w+|structures?|fragments?|objects?)",
    ),
    (
        "implant",
        "device",
        r"valve (?:replacement|prosthe\w+)|(?:prosthetic|artificial|mechanical)(?: \w+){0,2} valves?|prosthe\w+|"
        r"(?:arthroplast|prosth)\w+|stents?\b|(?:breast )?implants?\b|(?:orthopedic |fixation |fusion |"
        r"spinal )*(?:hardware|rods?\b|screws?|plates? and screws?)|(?:closure|fixation|medical|electronic|"
        r"stimulator|implanted|assist|occlusion)(?: \w+)? devices?|stimulator|loop recorder|vp shunt|"
        r"internal fixation|bone anchor|leads?\b(?= (?:terminat\w+|in|over\w*|project\w*|within|are|and))|"
        r"shunt (?:tubing|catheter)|(?:spinal|spine|cervical|lumbar|thoracic|anterior)(?: \w+)? fusion|"
        r"(?:monitor(?:ing)?|ekg|ecg) (?:leads?|wires?)|(?:lead|wire)s?\b(?= tips?)|coils?\b",
    ),
    (
        "acute abnormality",
        "chest",
        r"(?:acute|active)(?: or (?:acute|active|significant))?(?:,? (?!bon|oss|skel|"
        r"frac)[\w/-]+){0,4} (?:abnormalit\w+|diseases?|process\w*|findings?|infiltrates?)",
    ),
)

# structures about which a report says that they are normal, large, ...
SUBJECTS = (
    (
        "cardiomediastinum",
        r"(?:cardio\W?mediastin|cardio\W{0,3}pericardial|heart/mediastin|cardiac mediastin)\w*(?: (?:silhouettes?|"
        r"contours?|size|structures|outlines?))?",
    ),
    (
        "heart",
        r"heart(?! (?:failure|rate|valve))(?: (?:size|silhouettes?|contours?|shadow|borders?))*|"
        r"cardiac(?: (?:size|silhouettes?|contours?|shadow|borders?|structures?|outline))+|cardiac(?= (?:and|or) |"
        r",)|cardiopericardial silhouette",
    ),
    ("mediastinum", r"mediastin(?:um|al)(?: (?:size|silhouettes?|contours?|structures|borders?|width|outlines?))*"),
    ("lung volumes", r"lung volumes|inspirat\w+"),
    (
        "lung",
        r"lungs?(?: (?:fields?|parenchyma|zones|bases?|apices))?(?! (?:volume|nodule|mass|cancer|marking))|"
        r"pulmonary parenchyma",
    ),
    ("pleura", r"pleural (?:spaces?|surfaces?|margins)|pleura\b"),
    ("vasculature", r"(?:pulmonary )?(?:vascul(?:arity|ature|ar (?:markings|pattern|engorgement))|vessels)"),
    ("costophrenic angle", r"(?:costophrenic|cp) (?:angles?|sulc\w+|recess\w*)"),
    ("diaphragm", r"(?:hemi\W?)?diaphragms?"),
    ("aorta", r"(?:thoracic )?aorta|aortic (?:arch|knob|contours?)"),
    (
        "bone",
        r"(?:osseous|bony|skeletal|bone) (?:structures?|thorax|elements|skeleton)|bones|ribs|skeleton|"
        r"thoracic (?:spine|cage)|spine",
    ),
)
PREDICATES = (
    (
        "normal",
        r"(?:within |in )?(?:the )?(?:upper |top )?(?:normal (?:limits?|range)|limits? (?:of )?normal)|"
        r"normal(?!ly)|unremarkable|intact",
    ),
    ("clear", r"clear(?!ing|ed|ance)"),
    (
        "enlarged",
        r"enlarge\w*|borderline(?! (?:normal|low))|large(?= (?:heart|cardiac|cardio))|(?:is|remains|appears|"
        r"slightly|mildly|moderately|markedly|somewhat|xxxx) large(?! \w+ effusion)|widen\w*|prominent|prominence|"
        r"generous|dilated",
    ),
    ("tortuous", r"tortuo\w+|ectati\w+|ectasia|unfold\w+|uncoiled"),
    ("calcified", r"calcif\w+|atheroscler\w+"),
    ("elevated", r"elevat\w+"),
    ("flattened", r"flatten\w+"),
    ("low", r"low(?!er)|diminished|reduced|small"),
    ("blunted", r"blunt\w*"),
)
# what a subject with a predicate states; every other combination states nothing.
PAIRS = {
    ("heart", "normal"): ("normal heart", "heart"),
    ("heart", "enlarged"): ("cardiomegaly", "heart"),
    ("cardiomediastinum", "normal"): ("normal cardiomediastinum", "mediastinum"),
    ("cardiomediastinum", "enlarged"): ("enlarged cardiomediastinum", "mediastinum"),
    ("mediastinum", "normal"): ("normal mediastinum", "mediastinum"),
    ("mediastinum", "enlarged"): ("widened mediastinum", "mediastinum"),
    ("lung", "clear"): ("clear lungs", "lung"),
    ("lung", "normal"): ("clear lungs", "lung"),
    ("lung volumes", "low"): ("low lung volumes", "lung"),
    ("lung volumes", "normal"): ("normal lung volumes", "lung"),
    ("pleura", "clear"): ("normal pleura", "pleura"),
    ("pleura", "normal"): ("normal pleura", "pleura"),
    ("vasculature", "normal"): ("normal vasculature", "lung"),
    ("vasculature", "enlarged"): ("vascular congestion", "lung"),
    ("costophrenic angle", "blunted"): ("blunted costophrenic angle", "pleura"),
    ("costophrenic angle", "clear"): ("normal pleura", "pleura"),
    ("diaphragm", "elevated"): ("elevated diaphragm", "diaphragm"),
    ("diaphragm", "flattened"): ("hyperinflation", "lung"),
    ("aorta", "normal"): ("normal aorta", "aorta"),
    ("aorta", "tortuous"): ("tortuous aorta", "aorta"),
    ("aorta", "calcified"): ("calcified aorta", "aorta"),
    ("bone", "normal"): ("normal bones", "bone"),
}

_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|noted|demonstrated|evident|appreciated|detected|present|observed|found|visible|"
    r"shown|apparent|suspected)"
)
_BE = r"(?:is|are|was|were|has been|have been)"
_VERB = (
    r"(?:is|are|was|were|has|have|appears?|remains?|shows?|demonstrates?|represents?|reflects?|suggests?|contains?|be)"
)
_CHANGE = r"(?:change|increase|progression|worsening|improvement|decrease|difference)"
CUES = (
    (
        "PSEUDO",
        rf"(?:no|not|without)(?: (?:significant|interval|definite|substantial|appreciable|obvious|other|xxxx|"
        rf"evidence|of))*(?:ly)? (?:{_CHANGE}\w*|longer)(?: in| from| of)?|not (?:significantly |markedly |"
        rf"substantially |appreciably )?(?:changed|increased|progressed|different)|not (?:well|fully|completely|"
        rf"clearly|optimally|entirely|included|only|necessarily)(?! (?:exclude|ruled))|no (?:prior|previous|"
        rf"comparison|xxxx comparison)(?: \w+)?|gram negative",
    ),
    (
        "UNC_POST",
        rf"(?:can\W?not|could not|can't|may not)(?: be)?(?: \w+ly)? (?:excluded|ruled out)|"
        rf"(?:{_BE} )?not(?: be)?(?: \w+ly)? (?:excluded|ruled out)|(?:{_BE}|may be|remains|"
        rf"could be)(?: \w+ly)? (?:possible|likely|probable|suspected|questioned|questionable|a (?:possibility|"
        rf"consideration|concern))|may be present|could be present|difficult to exclude|"
        rf"(?:{_BE} )?in the differential",
    ),
    (
        "UNC_PRE",
        r"(?:can\W?not|could not|can't|not|difficult to)(?: \w+ly)? (?:exclude|rule out)|possib(?:le|ly|"
        r"ility)(?: of)?|probab(?:le|ly)|presum(?:ed|ably)|likely|may(?: or may not)?(?: also)? (?:be|represent|"
        r"reflect|indicate|suggest|relate)|might|could (?:be|represent|reflect|relate|indicate|suggest)|"
        r"suspicious for|(?:concerning|worrisome|suspicion|concern)(?: for| of)?|suggest(?:s|ed|ing|ion|"
        r"ive)?(?: of)?|question(?:able|ed)?(?: of)?|suspect(?:ed)?|equivocal|potential(?:ly)?|"
        r"differential(?: \w+){0,2} includ\w+|favor(?:ed|s)?|perhaps|appearance of",
    ),
    ("EITHER", r"versus|vs\b|and/or|or\b"),
    (
        "HYPOTHETICAL",
        r"history of|hx of|evaluat(?:e|ion) (?:for|of)|assess(?:ment)? (?:for|of)|rule out|r/o|if (?:there|"
        r"clinical|persistent|symptom)\w*|(?:can|could|may|might) (?:obscure|hide|mask|simulate|mimic)|"
        r"exclusion of|to exclude|sensitivity for|indication",
    ),
    (
        "HYPOTHETICAL_POST",
        rf"(?:may|might|can|could) not be (?:\w+ )?{_SEEN}|(?:may|might|can|could) be (?:obscured|missed|occult)",
    ),
    (
        "NEG_POST",
        rf"(?:{_BE}|has|have)(?: \w+ly| now| since| also)? (?:absent|resolved|cleared|excluded|ruled out|"
        rf"disappeared|removed|unlikely)|(?:is|are|appears?) within (?:the )?(?:normal limits|limits of normal)|"
        rf"(?:{_BE} )?not(?: \w+ly| otherwise)? {_SEEN}|(?:{_BE} )?no longer(?: \w+ly)? {_SEEN}|unlikely",
    ),
    (
        "NEG_PRE",
        r"no\b(?! \d)|not|without|w/o|negative for|free of|free from|clear of|devoid of|absence of|absent|lack of|"
        r"lacks|den(?:y|ies)|nor\b|neither|never|(?:resolution|clearing|removal) of|rather than|ruled out|"
        r"rules out|inconsistent with",
    ),
    (
        "STOP",
        rf";|:|\b(?:but|however|although|though|except|aside from|apart from|other than|besides|which|yet|whereas|"
        rf"while|otherwise|secondary to|due to|given)\b|,(?= (?:(?:and )?there |stable|mild|moderate|chronic|"
        rf"unchanged|persistent|old|healed|degenerative|again|status post|normal|unremarkable))|(?:,|"
        rf" and)(?= [^,;:]*?\b{_VERB}\b(?! (?:not |no longer |again |also )?(?:\w+ly )?(?:{_SEEN}|absent|resolved|"
        rf"excluded|unlikely|removed)))|\b(?:and|with)(?= (?:there|stable|unchanged|mild|moderate))",
    ),
    ("COMMA", r","),
    ("AND", r"and|with"),
    ("VERB", rf"\b{_VERB}\b"),
)  # fmt: skip

SIDES = (("bilateral", r"bilateral\w*|both|bibasilar|bibasal|biapical"), ("left", r"left\w*"), ("right", r"right\w*"))
SEVERITIES = (
    ("mild", r"mild\w*|minimal\w*|small|tiny|trace|slight\w*|borderline|minor|subtle"),
    ("moderate", r"moderate\w*"),
    ("severe", r"severe\w*|large|marked\w*|extensive|massive|advanced|gross(?!ly)"),
)
PLACES = (
    ("upper lobe", r"upper (?:lobe|lung|zone)\w*"),
    ("middle lobe", r"middle lobe|mid\W?lung\w*|mid (?:lung|zone)s?"),
    ("lower lobe", r"lower (?:lobe|lung|zone)\w*"),
    ("lingula", r"lingul\w+"),
    ("apex", r"(?:bi)?apical|apex|apices"),
    ("base", r"bases?\b|(?:bi)?basilar|(?:bi)?basal"),
    ("hilum", r"(?:peri|supra|infra|juxta)?hil(?:ar|um|a)\b"),
    ("retrocardiac", r"retrocardiac"),
    ("rib", r"ribs?\b"),
    ("clavicle", r"clavic\w+"),
    ("spine", r"spine|vertebra\w*|\bt\d+\b|\bl\d\b"),
    ("shoulder", r"shoulder\w*|humer\w+|glenohumeral|acromioclavicular"),
)


class Mention(NamedTuple):
    """One finding in a text. `start`, `end` and the spans of `modifiers` (cues, side, ...) are character offsets."""

    finding: str
    anatomy: str
    side: str | None
    severity: str | None
    polarity: str
    start: int
    end: int
    modifiers: tuple[tuple[int, int], ...]


class _Hit(NamedTuple):
    name: str
    start: int
    end: int


class _Matcher:
    """A table of (name, pattern) as one compiled alternation; earlier rows win at the same place."""

    def __init__(self, rows) -> None:
        self.names = [name for name, _ in rows]
        parts = (f"(?P<r{i}>{pattern.replace(' ', chr(92) + 's+')})" for i, (_, pattern) in enumerate(rows))
        # an alternative starts at a word start or at a mark, so that "no" is never found in "nodule"
        self.regex = re.compile(rf"(?:(?<![\w])|(?=\W))(?:{'|'.join(parts)})(?:(?!\w)|(?<!\w))")

    def __call__(self, text: str, start: int = 0, end: int | None = None) -> list[_Hit]:
        found = self.regex.finditer(text, start, len(text) if end is None else end)
        return [_Hit(self.names[int(m.lastgroup[1:])], m.start(), m.end()) for m in found]


_FINDINGS = _Matcher([(name, pattern) for name, _, pattern in FINDINGS])
_ANATOMY = {name: anatomy for name, anatomy, _ in FINDINGS}
_SUBJECTS, _PREDICATES, _CUES = _Matcher(SUBJECTS), _Matcher(PREDICATES), _Matcher(CUES)
_SIDES, _SEVERITIES, _PLACES = _Matcher(SIDES), _Matcher(SEVERITIES), _Matcher(PLACES)
_LOWER = {
    upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)
}  # str.lower() can change the length, this cannot
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|(?<=[A-Za-z]{2})\.(?=[A-Za-z]{2})")
_ADJACENT = re.compile(r"\s+(?:(?:of|in|the|size|overall)\s+)*")
_JOINED = re.compile(r"[\s,]*(?:(?:and|or|but)\s+)?(?:\w+ly\s+)?")
_AFTER_VERB = re.compile(rf"\b{_VERB}\s+(?:(?!no\b)\w+\s+){{0,3}}$")


def check_text(text: object, name: str = "text") -> str:
    """`text` itself if it is a string, else RRGError."""
    if not isinstance(text, str):
        raise RRGError(f"{name} must be a string, got {type(text).__name__}: pass the report's text")
    return text


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences; neither a decimal point nor a line break ends one."""
    spans, start = [], 0
    for mark in _SENTENCE_END.finditer(text):
        spans.append((start, mark.start()))
        start = mark.end()
    return [(a, b) for a, b in [*spans, (start, len(text))] if text[a:b].strip()]


def mentions(text: str) -> list[Mention]:
    """All mentions in `text`, in order of place."""
    lowered = check_text(text).translate(_LOWER)
    found = []
    for start, end in sentence_spans(lowered):
        for m in _sentence_mentions(lowered[start:end]):
            spans = tuple((a + start, b + start) for a, b in m.modifiers)
            found.append(m._replace(start=m.start + start, end=m.end + start, modifiers=spans))
    return found


@lru_cache(maxsize=65536)  # a third of all report sentences are a hundred stock phrases
def _sentence_mentions(sentence: str) -> tuple[Mention, ...]:
    cues = _CUES(sentence)
    named = [(hit, _ANATOMY[hit.name], ()) for hit in _FINDINGS(sentence)]
    taken = [(hit.start, hit.end) for hit, _, _ in named]
    stated = [s for s in _statements(sentence, cues) if not any(a < s[0].end and s[0].start < b for a, b in taken)]
    hits = sorted(named + stated, key=lambda item: item[0].start)
    found = []
    for i, (hit, anatomy, spans) in enumerate(hits):
        polarity, cue_spans = _assert(hit, cues, sentence)
        if polarity is None or not hit.name:
            continue
        # attributes lie between the neighbouring mentions: "small right effusion and left atelectasis"
        left = max([h.end for h, _, _ in hits[:i] if h.end <= hit.start], default=0)
        right = min([h.start for h, _, _ in hits[i + 1 :] if h.start >= hit.end], default=len(sentence))
        left = max([c.end for c in cues if c.name == "STOP" and c.end <= hit.start] + [left])
        right = min([c.start for c in cues if c.name == "STOP" and c.start >= hit.end] + [right])
        # "pneumothorax or large effusion": what follows a comma or a conjunction belongs to the next mention
        right = min([c.start for c in cues if c.name in ("COMMA", "AND", "EITHER") and c.start >= hit.end] + [right])
        side, severity, place = (
            _nearest(matcher(sentence, left, right), hit) for matcher in (_SIDES, _SEVERITIES, _PLACES)
        )
        if place and anatomy not in ("lung", "pleura", "bone", "spine"):
            place = None
        modifiers = {*cue_spans, *spans, *((a.start, a.end) for a in (side, severity, place) if a)}
        found.append(
            Mention(
                hit.name,
                place.name if place else anatomy,
                side.name if side else None,
                severity.name if severity else None,
                polarity,
                hit.start,
                hit.end,
                tuple(sorted(modifiers)),
            )
        )
    return tuple(found)


def assertion(sentence: str, start: int, end: int) -> str | None:
    """Whether `sentence[start:end]` is PRESENT, ABSENT or UNCERTAIN there, for words that no table above names; None if
    it is hypothetical. The same cues with the same reach as for a mention."""
    sentence = check_text(sentence).translate(_LOWER)
    return _assert(_Hit("", start, end), _CUES(sentence), sentence)[0]


def hedges(sentence: str) -> list[tuple[int, int]]:
    """Character spans of the cues of speculation in a sentence ("may represent", "cannot be excluded", "versus")."""
    cues = _CUES(check_text(sentence).translate(_LOWER))
    return [(cue.start, cue.end) for cue in cues if cue.name in ("UNC_PRE", "UNC_POST", "EITHER")]


def _nearest(attributes: list[_Hit], hit: _Hit) -> _Hit | None:
    """The last attribute that begins before the mention ends, otherwise the first one after it."""
    before = [a for a in attributes if a.start < hit.end]
    return before[-1] if before else (attributes[0] if attributes else None)


def _statements(sentence: str, cues: list[_Hit]) -> list[tuple[_Hit, str, tuple[tuple[int, int], ...]]]:
    """Pairs of structure and predicate as hits on the predicate.

    After a verb the predicate speaks of the structures before it ("heart and lungs are normal"); straight before a
    structure, of the ones that follow ("normal heart size and mediastinal contours"); otherwise of those before it.
    """
    subjects, predicates = _SUBJECTS(sentence), _PREDICATES(sentence)
    stops = [cue.start for cue in cues if cue.name == "STOP"]
    verbs = [cue.start for cue in cues if cue.name == "VERB"]
    free, chosen, previous, found = list(subjects), [], 0, []
    for i, predicate in enumerate(predicates):
        following = predicates[i + 1].start if i + 1 < len(predicates) else len(sentence)
        limit = min([s for s in stops if s >= predicate.end] + [following])
        before = [s for s in free if previous <= s.start < predicate.start]
        after = [s for s in free if predicate.end <= s.start < limit]
        if before:  # only the last clause that names a structure: "lungs show an opacity and the heart is normal"
            cut = max([v for v in verbs if v < before[-1].start], default=-1)
            before = [s for s in before if s.start > cut]
        adjacent = bool(after) and _ADJACENT.fullmatch(sentence, predicate.end, after[0].start) is not None
        attributive = adjacent and not (before and _AFTER_VERB.search(sentence, 0, predicate.start))
        if before or after:
            chosen = after if attributive or not before else before
            free = [s for s in free if s not in chosen]
        elif not _JOINED.fullmatch(sentence, previous, predicate.start):  # "is tortuous and calcified" keeps the aorta
            chosen = []
        for subject in chosen:
            if pair := PAIRS.get((subject.name, predicate.name)):
                found.append((_Hit(pair[0], predicate.start, predicate.end), pair[1], ((subject.start, subject.end),)))
        previous = predicate.end
    return found


def _assert(hit: _Hit, cues: list[_Hit], sentence: str) -> tuple[str | None, list[tuple[int, int]]]:
    """Polarity of a mention (None: hypothetical, to be dropped) and the spans of the cues that decided it."""
    before = [c for c in cues if c.end <= hit.start]
    after = [c for c in cues if c.start >= hit.end]
    stop_before = max([c.end for c in before if c.name == "STOP"], default=0)
    stop_after = min([c.start for c in after if c.name == "STOP"], default=len(sentence))
    comma_before = max([c.end for c in before if c.name == "COMMA"], default=0)
    comma_after = min([c.start for c in after if c.name == "COMMA"], default=len(sentence))
    verb_after = min([c.start for c in after if c.name == "VERB"], default=len(sentence))

    def reaching(pre: str, post: str, commas: bool) -> list[tuple[int, int]]:
        low = stop_before if commas else max(stop_before, comma_before)
        high = min(stop_after, verb_after)
        spans = [(c.start, c.end) for c in before if c.name == pre and c.start >= low]
        return spans + [(c.start, c.end) for c in after if c.name == post and c.start <= high]

    if reaching("HYPOTHETICAL", "HYPOTHETICAL_POST", commas=False):
        return None, []
    if spans := reaching("NEG_PRE", "NEG_POST", commas=True):
        return ABSENT, spans
    if spans := reaching("UNC_PRE", "UNC_POST", commas=False):
        return UNCERTAIN, spans
    if spans := [
        (c.start, c.end)
        for c in cues
        if c.name == "EITHER"
        and (
            (
                c.end <= hit.start
                and c.start >= max(stop_before, comma_before)
                and len(sentence[c.end : hit.start].split()) <= 2
            )
            or (
                c.start >= hit.end
                and c.start <= min(stop_after, comma_after, verb_after)
                and len(sentence[hit.end : c.start].split()) <= 1
            )
        )
    ]:
        return UNCERTAIN, spans
    return PRESENT, []
