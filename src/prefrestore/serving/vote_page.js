// Keys, and a zoom that shows the same place in all three pictures.
(() => {
  const keys = {
    ArrowLeft: "vote-a", ArrowRight: "vote-b", ArrowDown: "vote-tie", x: "vote-both_bad", u: "undo", z: "zoom",
  };
  const typing = (target) => target.closest("input, textarea, select, [contenteditable]");
  const aim = (event) => {
    const frame = event.target.closest && event.target.closest("#board .frame");
    if (!frame) return;
    const box = frame.getBoundingClientRect();
    const share = (value, start, size) => `${Math.min(100, Math.max(0, (100 * (value - start)) / size))}%`;
    document.body.style.setProperty("--x", share(event.clientX, box.left, box.width));
    document.body.style.setProperty("--y", share(event.clientY, box.top, box.height));
  };
  const zoom = () => document.body.classList.toggle("zoomed");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || typing(event.target)) return;
    const id = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const button = id && document.getElementById(id);
    if (!button || button.offsetParent === null) return;
    event.preventDefault();
    button.click();
  });
  document.addEventListener("pointermove", aim);
  document.addEventListener("click", (event) => {
    if (event.target.closest("#zoom")) zoom();
    if (event.target.closest("#board .frame")) {
      aim(event);
      zoom();
    }
  });
})();
