"""The style sheet of the report page: dark on light, one column on a phone, system fonts, nothing loaded."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light;--ink:#1c2129;--soft:#5b6472;--line:#e0e4ea;--pale:#f5f7f9;--accent:#2563b0;
--right:#16805a;--wrong:#b4232c}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main,header{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:48px}
h1{font-size:clamp(1.7rem,4vw,2.4rem);line-height:1.15;margin:0 0 14px;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:1.4rem;margin:0 0 6px;letter-spacing:-.01em}
h3 small{font-weight:400;font-size:.88rem;margin-left:6px}
h3{font-size:1.02rem;margin:26px 0 10px}
p{margin:0 0 12px}
.lead{font-size:1.12rem;max-width:50em}
.intro{color:var(--soft);max-width:50em}
.note{color:var(--soft);font-size:.86rem;margin:8px 0 0}
section{padding:32px 0 6px;border-top:1px solid var(--line);margin-top:30px}
nav{display:flex;flex-wrap:wrap;gap:4px 20px;margin-top:18px;font-size:.94rem}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
.facts:empty,.cards:empty{display:none}
.facts{display:flex;flex-wrap:wrap;gap:2px 26px;margin:14px 0 0;padding:0;list-style:none;color:var(--soft);
font-size:.92rem}
.facts b{color:var(--ink);font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:16px;margin-top:26px}
.card{border:1px solid var(--line);border-radius:10px;padding:16px 18px;background:var(--pale)}
.card h3{margin:0 0 8px}
.card dl{margin:0;display:grid;grid-template-columns:auto 1fr;gap:4px 12px;align-items:baseline}
.card dt{font-size:1.5rem;font-weight:650;font-variant-numeric:tabular-nums;letter-spacing:-.02em}
.card dd{margin:0;font-size:.9rem;color:var(--soft);line-height:1.35}
.scroll{overflow-x:auto;margin-top:14px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);font-weight:400}
thead th{color:var(--soft);font-size:.88rem;border-bottom:2px solid var(--ink);vertical-align:bottom}
.results td,.results thead th:not(:first-child){text-align:right;white-space:nowrap;min-width:98px}
.results th[scope=row]{padding-left:0;font-weight:550;min-width:190px}
.results th small{display:block;font-weight:400;color:var(--soft);font-size:.84rem;line-height:1.35}
.results .group th{padding:24px 0 6px;font-weight:650}
.results thead th:first-child{padding-left:0}
.across th[scope=row]{white-space:nowrap}
.bar{display:inline-block;width:86px;padding:0 6px;border-radius:4px;
background:linear-gradient(to right,#cfe0f4 var(--share),#f0f2f5 var(--share))}
.chance,.none{color:var(--soft)}
.warn{color:var(--wrong);font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:26px 36px;margin-top:18px}
.chart{margin:0;min-width:0;display:flex;flex-direction:column}
.chart figcaption{flex:1}
.chart h3{margin:0}
.chart p{margin:0;color:var(--soft);font-size:.88rem}
.legend{list-style:none;margin:6px 0 2px;padding:0;display:flex;flex-wrap:wrap;gap:2px 18px;font-size:.88rem}
.legend i{display:inline-block;width:16px;height:4px;border-radius:2px;margin-right:6px;vertical-align:middle}
.legend b{font-weight:600;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto;display:block}
svg text{font-size:12.5px;fill:#5b6472}
svg .grid{stroke:#e7eaef}
svg .axis{stroke:#9aa3b0;fill:none}
svg .raw{fill:none;stroke-width:1;opacity:.26}
svg .line{fill:none;stroke-width:2.4;stroke-linejoin:round;stroke-linecap:round}
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:14px}
.example{display:flex;flex-wrap:wrap;align-content:flex-start;align-items:flex-start;gap:12px 14px;
border:1px solid var(--line);border-left:4px solid var(--line);
border-radius:8px;padding:12px 14px;min-width:0}
.example.right{border-left-color:var(--right)}
.example.wrong{border-left-color:var(--wrong)}
.example .thumbnail{height:104px;width:auto;max-width:100%;object-fit:contain;border-radius:4px;
box-shadow:0 0 0 1px var(--line)}
.words{flex:1 1 230px;min-width:0;overflow-wrap:anywhere}
.words p{margin:0 0 6px;line-height:1.4}
.words span{display:block;line-height:1.5;font-size:.76rem;color:var(--soft)}
.words .more{color:var(--soft);font-size:.84rem}
.badge{float:right;margin-left:8px;font-size:.8rem;font-weight:600}
.badge.right{color:var(--right)}
.badge.wrong{color:var(--wrong)}
mark{background:#fbdcdc;color:#8d1119;border-radius:3px;padding:0 3px;text-decoration:underline;
text-decoration-thickness:2px;text-underline-offset:3px}
ins{text-decoration:none;background:#e3e8ef;border-radius:3px;padding:0 3px}
.query{border-top:1px solid var(--line);padding:16px 0 6px}
.question{display:flex;flex-wrap:wrap;align-items:center;gap:6px 14px;margin-bottom:10px}
.query blockquote{margin:0;font-weight:550;overflow-wrap:anywhere;flex:1 1 260px}
.question .asked{height:84px;width:auto;max-width:100%;border-radius:6px;border:2px solid var(--ink)}
.question .rank{font-size:.88rem;font-weight:600;color:var(--wrong)}
.right .rank{color:var(--right)}
.answers{display:grid;grid-template-columns:repeat(5,minmax(0,1fr));gap:12px;list-style:none;margin:0;padding:0}
.answers li{font-size:.82rem;line-height:1.35;color:var(--soft);min-width:0;overflow-wrap:anywhere}
.answers .frame{display:flex;align-items:center;justify-content:center;height:124px;border-radius:8px;
border:1px solid var(--line);padding:5px;margin-bottom:5px;background:var(--pale)}
.answers .hit .frame{border:3px solid var(--right);padding:3px;background:#eaf6f0}
.answers .hit b{color:var(--right)}
.answers img{max-width:100%;height:100%;object-fit:contain;border-radius:4px}
details{margin:10px 0;border:1px solid var(--line);border-radius:8px}
summary{cursor:pointer;padding:10px 14px;font-weight:550}
pre{margin:0;padding:12px 14px;background:var(--pale);overflow-x:auto;font:13.5px/1.5 ui-monospace,SFMono-Regular,
Menlo,Consolas,monospace;border-radius:8px}
.command{user-select:all;white-space:pre-wrap;overflow-wrap:anywhere}
.pairs{width:auto;font-size:.93rem}
.pairs td,.pairs th{padding:4px 24px 4px 0;overflow-wrap:anywhere}
.pairs th{color:var(--soft);white-space:nowrap}
footer{color:var(--soft);font-size:.86rem;padding:20px 0 50px}
@media (max-width:640px){main,header{padding-left:16px;padding-right:16px}header{padding-top:26px}
.answers{grid-template-columns:repeat(auto-fill,minmax(104px,1fr))}.answers .frame{height:104px}
.results,.results thead,.results tbody{display:block}.results tr{display:flex;flex-wrap:wrap;
border-bottom:1px solid var(--line);padding:5px 0}.results tr.group{border:0}
.results td,.results th{border:0;padding:2px 0}
.results th[scope=row],.results .group th{flex:0 0 100%}.results .group th{padding-top:18px}
.results thead th:first-child{display:none}.results thead tr{border-bottom:2px solid var(--ink)}
.results td,.results thead th:not(:first-child){flex:1 1 0;min-width:52px;padding-left:4px;
white-space:normal;font-size:.86rem}
.bar{width:calc(100% - 8px);padding:0 3px}svg text{font-size:16px}}
@media print{section{break-inside:auto}.example,.query,.chart{break-inside:avoid}nav{display:none}}
"""
