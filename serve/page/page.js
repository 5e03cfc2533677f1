// Under the pointer: lead, time and level. Dragged with a mouse: calipers. Buttons: zoom. Touch scrolls, as anywhere.
(() => {
  let tip, box, from;

  const make = (id) => {
    const found = document.getElementById(id) ?? document.createElement("div");
    found.id = id;
    if (!found.isConnected) document.body.append(found);
    return found;
  };

  const read = (segment, event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(
      segment.ownerSVGElement.getScreenCTM().inverse());
    const { lead, start, x, baseline, mmPerSecond, mmPerMv } = segment.dataset;
    return { lead, time: +start + (point.x - x) / mmPerSecond, level: (baseline - point.y) / mmPerMv,
      mmPerSecond: +mmPerSecond, mmPerMv: +mmPerMv, point };
  };

  const mv = (level) => `${(Math.round(level * 100) / 100 + 0).toFixed(2)} mV`; // + 0: no "-0.00"

  const show = (event, words) => {
    tip = make("ecg-tip");
    tip.textContent = words;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${Math.max(4, event.clientY - height - 10)}px`;
  };

  const hide = () => {
    from = undefined;
    for (const id of ["ecg-tip", "ecg-box"]) {
      const found = document.getElementById(id);
      if (found) found.hidden = true;
    }
  };

  document.addEventListener("pointermove", (event) => {
    const segment = event.target.closest?.(".ecg-segment");
    if (!segment) {
      if (!from) hide();
      return;
    }
    const here = read(segment, event);
    if (!from || from.svg !== segment.ownerSVGElement) {
      show(event, `${here.lead}  ${Math.round(here.time * 1000)} ms  ${mv(here.level)}`);
      return;
    }
    const seconds = Math.abs(here.point.x - from.here.point.x) / here.mmPerSecond;
    const level = (from.here.point.y - here.point.y) / here.mmPerMv;
    const rate = seconds > 0.15 ? `  ${Math.round(60 / seconds)}/min` : "";
    show(event, `Δ ${Math.round(seconds * 1000)} ms${rate}  Δ ${mv(level)}`);
    box = make("ecg-box");
    box.hidden = false;
    Object.assign(box.style, {
      left: `${Math.min(event.clientX, from.x)}px`, top: `${Math.min(event.clientY, from.y)}px`,
      width: `${Math.abs(event.clientX - from.x)}px`, height: `${Math.abs(event.clientY - from.y)}px`,
    });
  });

  document.addEventListener("pointerdown", (event) => {
    const segment = event.target.closest?.(".ecg-segment");
    if (!segment || event.pointerType !== "mouse" || event.button !== 0) return;
    event.preventDefault();
    from = { svg: segment.ownerSVGElement, here: read(segment, event), x: event.clientX, y: event.clientY };
  });

  document.addEventListener("pointerup", hide);
  document.addEventListener("scroll", hide, true);

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-zoom]");
    if (!button) return;
    const scroll = button.closest(".ecg-frame").querySelector(".ecg-scroll");
    const step = +button.dataset.zoom;
    const now = +(scroll.style.getPropertyValue("--zoom") || 1);
    const next = step === 0 ? 1 : Math.min(4, Math.max(1, now * (step > 0 ? 1.25 : 0.8)));
    const middle = (scroll.scrollLeft + scroll.clientWidth / 2) / scroll.scrollWidth;
    scroll.style.setProperty("--zoom", next);
    scroll.scrollLeft = middle * scroll.scrollWidth - scroll.clientWidth / 2;
  });
})();
