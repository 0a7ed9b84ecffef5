"""The look of report.html and of every other page: one style sheet, from 400 pixels to paper, in
colours of the palette, whose contrast is at least 4.5:1 on each of its grounds (WCAG 2.2, 1.4.3); a
mark never speaks by its colour alone. A page needs nothing else, neither network nor script nor
font; whoever fills it escapes every word that is not confide's own.
"""

from . import escape
from .svg import DARK, LIGHT

STYLE = """
*{box-sizing:border-box}
html{font:17px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",
sans-serif;background:var(--page);color:var(--ink);-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:68rem;padding:3.5rem 2rem 4rem}
h1,h2,h3,p,ul,dl,dd,figure,table{margin:0;padding:0}
h1{font-size:.95rem;font-weight:600;color:var(--soft);overflow-wrap:anywhere}
h2{font-size:1.12rem;font-weight:650;line-height:1.35;text-wrap:balance}
h3{font-size:.95rem;font-weight:650;margin-bottom:.6rem}p+p,p+ul{margin-top:.7rem}
.claim{font:400 clamp(1.45rem,1.05rem + 1.7vw,2.15rem)/1.3 Charter,"Bitstream Charter","Sitka Text",
Cambria,Georgia,"Liberation Serif",serif;letter-spacing:-.006em;margin:1.1rem 0 2.2rem;
max-width:24em;text-wrap:pretty;overflow-wrap:anywhere}
.withdrawn{color:var(--bad);font-weight:600}
.facts{display:grid;grid-template-columns:repeat(4,1fr);border-top:1px solid var(--rule);
border-bottom:1px solid var(--rule)}
.facts div{padding:1rem 1.2rem}.facts div+div{border-left:1px solid var(--rule)}
.facts div:first-child{padding-left:0}.facts dt{font-size:.82rem;color:var(--soft)}
.facts dd{font-size:1.5rem;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}
.facts small{display:block;font-size:.82rem;font-weight:400;color:var(--soft);line-height:1.4}
section{display:grid;grid-template-columns:15rem minmax(0,1fr);gap:1rem 3rem;padding:2.6rem 0;
border-bottom:1px solid var(--rule)}
section:last-of-type{border-bottom:0}
.lead{color:var(--soft);font-size:.88rem;margin-top:.5rem;line-height:1.5}
.body>*+*{margin-top:1.7rem}.body p{max-width:38em}.note{font-size:.88rem;color:var(--soft)}
figcaption{margin-top:.9rem;max-width:43em}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:2rem 2.5rem}
.bars{display:grid;grid-template-columns:minmax(7rem,auto) minmax(0,1fr) auto;gap:.55rem .9rem;
align-items:center;font-size:.92rem}
.bars.wide{grid-template-columns:minmax(0,17rem) minmax(0,1fr) auto}
.bars b{font-variant-numeric:tabular-nums;text-align:right;font-weight:500}
.bars .main{font-weight:650}
.bars small{display:block;color:var(--soft);font-size:.82rem;line-height:1.35;font-weight:400}
svg{display:block;width:100%;overflow:visible}.bar{height:14px}
.bar.thin{height:5px;margin-top:.3rem}.track{fill:var(--tint)}.fill{fill:var(--muted)}
.fill.main{fill:var(--accent)}.fill.bad{fill:var(--bad)}.whisker{stroke:var(--ink);stroke-width:1.5}
.chart{height:230px}.chart text{font-size:12.5px;fill:var(--soft);font-variant-numeric:tabular-nums}
.chart .value{fill:var(--accent);font-weight:650;font-size:14px;paint-order:stroke;
stroke:var(--page);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--rule)}.limit{stroke:var(--warn);stroke-width:1.5;stroke-dasharray:5 4}
.chart .limit-text{fill:var(--warn)}.line{stroke:var(--muted);stroke-width:1.2;stroke-linecap:round}
.line.main{stroke:var(--accent);stroke-width:2.4}
.dot{fill:var(--accent);stroke:var(--page);stroke-width:2}
table{width:100%;border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th{font-size:.82rem;font-weight:500;color:var(--soft);text-align:right;vertical-align:bottom;
padding:0 0 .5rem 1rem;line-height:1.3}
td{text-align:right;padding:.5rem 0 .5rem 1rem;border-top:1px solid var(--rule);vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0;overflow-wrap:anywhere}
td.key{font-weight:650;width:6.5rem}.list{list-style:none;display:grid;gap:.9rem}
.list li{padding-left:1.1rem;border-left:3px solid var(--rule)}
.list li.good{border-color:var(--good)}.list li.warn{border-color:var(--warn)}
.list li.bad{border-color:var(--bad)}.list li.accent{border-color:var(--accent)}
.list strong{font-weight:600;display:block}
.list span{color:var(--soft);font-size:.92rem;display:block;overflow-wrap:anywhere}
h3.good{color:var(--good)}h3.warn{color:var(--warn)}h3.accent{color:var(--accent)}
.mark{float:right;font-size:.85rem;font-weight:650;margin-left:1rem}.mark.good{color:var(--good)}
.mark.bad{color:var(--bad)}
.settings{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:0 2.5rem;
font-size:.85rem}
.settings div{display:flex;justify-content:space-between;gap:1rem;padding:.28rem 0;
border-bottom:1px solid var(--rule)}
.settings dt{color:var(--soft);white-space:nowrap}
.settings dd{text-align:right;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.bearing{margin:1.6rem 0 0;max-width:56rem}.proof{margin-top:1.4rem;max-width:56rem}
.holders{font-size:.84rem}.holders th,.holders td{padding-left:.7rem}
.holders th:first-child,.holders td:first-child{min-width:6.2rem;padding-left:0}
td small{display:block;color:var(--soft);font-size:.82rem;font-weight:400}
.about div{display:grid;grid-template-columns:15rem minmax(0,1fr);gap:1rem;padding:.4rem 0;
border-bottom:1px solid var(--rule);font-size:.92rem}
.about dt{color:var(--soft)}.about dd{overflow-wrap:anywhere}
.sign{display:grid;grid-template-columns:1fr 1fr;gap:2rem;font-size:.85rem;color:var(--soft);
break-inside:avoid}.sign span{border-top:1px solid var(--soft);padding-top:.3rem;margin-top:3rem}
footer{color:var(--soft);font-size:.85rem;padding-top:.5rem}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
@media (max-width:56rem){section{grid-template-columns:minmax(0,1fr)}}
@media (max-width:40rem){html{font-size:16px}body{padding:2rem 1.15rem 3rem}section{padding:2rem 0}
.facts{grid-template-columns:1fr 1fr}.facts div{padding:.8rem .9rem}
.facts div:nth-child(odd){padding-left:0;border-left:0}
.facts div:nth-child(n+3){border-top:1px solid var(--rule)}
.pair{grid-template-columns:minmax(0,1fr)}
.bars.wide{grid-template-columns:minmax(0,1fr) auto;gap:.2rem .9rem;grid-auto-flow:dense}
.bars.wide>svg{grid-column:1/-1;margin-bottom:.7rem}
.holders thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.holders tr{display:grid;grid-template-columns:1fr 1fr;gap:.1rem 1.6rem;padding:.7rem 0;
border-top:1px solid var(--rule)}
.holders td{border:0;padding:0;display:flex;justify-content:space-between;width:auto}
.holders td::before{content:attr(data-label);color:var(--soft);font-weight:400}
.holders td:first-child{grid-column:1/-1;font-weight:650}
.holders td:first-child::before{content:none}.holders .bar{display:none}}
@media (max-width:40rem){.about div{grid-template-columns:minmax(0,1fr);gap:0}}
@media print{html{font-size:10.5pt;background:none;orphans:3;widows:3}body{max-width:none;padding:0}
section{display:block;padding:1.2rem 0}section .body{margin-top:.6rem}
.list{display:block}.list li{margin-bottom:.7rem}
figure,li,tr,.facts,.bars,.settings div,.about div,section>div:first-child{break-inside:avoid}
h2,h3,thead,section>div:first-child{break-after:avoid}thead{display:table-header-group}
.note,p,.about,.pair{break-inside:avoid}li:first-child,tr:first-child{break-after:avoid}
li:last-child,tr:last-child,tr:nth-last-child(2){break-before:avoid}.signs{break-inside:avoid}
.facts dd{font-size:1.2rem}.facts small{font-size:.78rem}
.track,.fill{print-color-adjust:exact;-webkit-print-color-adjust:exact}@page{margin:18mm 16mm}}
"""


def page(title: str, body: str, style: str = "") -> str:
    """The whole page around ``body``; ``style`` goes behind the report's own style sheet."""
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in palette.items())
        for palette in (LIGHT, DARK)
    )
    colours = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{colours}{STYLE}{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
