// Runs before the page is drawn, so that a remembered theme does not flash.
try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden; the theme is then that of the system.
}
